"""A proof on a real device: plain vLLM beside vllm-autofit, real architectures, real load, in slices of minutes."""
