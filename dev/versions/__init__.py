"""Real starts on many versions of vLLM, each in an environment of its own: ``python -m dev.versions``."""
