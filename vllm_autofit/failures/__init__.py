"""An exception of vLLM's -> the phase it happened in. Pure."""
