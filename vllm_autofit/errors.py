"""What can go wrong in vllm-autofit. Facts are fields; the message ends with the remedy."""

from __future__ import annotations


class AutofitError(Exception):
    """Base of all our errors. None of them ever leaves a hook: vLLM runs on as if we weren't there."""


class DeviceError(AutofitError):
    """The memory of a device could not be read.

    Attributes:
        device: what was asked for, as the user or vLLM named it.
        reason: what the driver or the operating system said.
    """

    def __init__(self, device: str, reason: str, remedy: str) -> None:
        self.device = device
        self.reason = reason
        super().__init__(f"cannot read the memory of {device}: {reason}. {remedy}")


class SeamError(AutofitError):
    """A function of vLLM's that we hook is missing, or takes other parameters than the ones we know.

    Attributes:
        seam: the function, as ``module:Class.function``.
        found: what is there instead.
    """

    def __init__(self, seam: str, found: str, expected: str) -> None:
        self.seam = seam
        self.found = found
        super().__init__(f"{seam} is {found}, expected {expected}. vLLM runs without this hook")


class StoreError(AutofitError):
    """The cache folder can't be read or written.

    Attributes:
        path: the file or folder.
        reason: what the operating system said.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"cannot use {path} ({reason}). Make it a folder that this user can read and write, or name another one in "
            "VLLM_AUTOFIT_CACHE_DIR"
        )


class RecordError(AutofitError):
    """A record on disk is not one of ours, or is damaged.

    Attributes:
        path: the file.
        reason: the first thing that is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is not a readable record ({reason})")
