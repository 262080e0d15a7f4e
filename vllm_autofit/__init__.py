"""vllm-autofit: plain ``vllm serve MODEL`` starts the first time, and gets better with every start.

Importing this package imports nothing else: it is on the path of every vLLM process.
"""

__version__ = "0.1.0"
