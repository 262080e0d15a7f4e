"""A log or an exception of vLLM's -> what failed, in which phase, and what to change. Pure."""
