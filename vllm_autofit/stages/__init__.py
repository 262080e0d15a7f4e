"""Files of stages: several engines that one command starts, each with a share of the devices that it lives on.

vLLM-Omni reads them (``--deploy-config``, before 0.20 ``--stage-configs-path``). ``reading`` says what a file means,
``writing`` puts shares into its text and leaves every other character as it was.
"""
