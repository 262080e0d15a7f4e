"""``python -m vllm_autofit``: the same as the command ``vllm-autofit``."""

import sys

from vllm_autofit.cli.main import main

sys.exit(main())
