"""The command ``vllm-autofit``: what was decided, what was learned, and what a start would ask for now."""
