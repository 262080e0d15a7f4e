"""Arithmetic: bytes in, bytes out. No input or output, no vLLM, no torch."""
