"""Is all well with this installation, this machine, and this user's cache: readings, and what to make of them."""
