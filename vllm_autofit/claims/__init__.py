"""Who has a claim on which device's memory: engines of one user that share a device don't count it twice."""
