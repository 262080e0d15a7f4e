"""A plan or a record as text that a person, or a script, can use."""
