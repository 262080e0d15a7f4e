"""How each model family's config is read: shared rules for common names, a function only where a rule can't do it.

``parts`` takes a config apart, ``table`` says which family an architecture belongs to and what is particular about it.
The rules: ``fields`` (checked reading), ``attention``, ``feed_forward``, ``recurrent``; ``stacks``, ``hybrids`` and
``encoders`` (which layers, in order); ``context``, ``quantization``, ``drafters``, ``extras``; ``towers`` with
``vision`` and ``audio``. What a config leaves out comes from ``defaults.json``.
"""
