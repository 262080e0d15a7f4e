"""What can go wrong in vllm-autofit. Facts are fields; the message ends with the remedy."""

from __future__ import annotations


class AutofitError(Exception):
    """Base of all our errors. None but ``RefusedError`` ever leaves a hook: vLLM runs on as if we weren't there."""


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


class UnsupportedDeviceError(DeviceError):
    """vLLM runs on devices that no plan is made for.

    Attributes:
        device: what they are called.
        reason: always the same.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.reason = "not supported"
        AutofitError.__init__(self, f"{device} aren't supported, and vLLM runs as it does without vllm-autofit")


class NoAnswerError(AutofitError):
    """Somebody outside was asked, and didn't answer in time.

    Attributes:
        what: a driver, the system, a folder.
        seconds: how long we waited.
    """

    def __init__(self, what: str, seconds: float, remedy: str) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what} gave no answer within {seconds:g} s. {remedy}")


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


class NewerRecordError(RecordError):
    """A record was written by a newer version of us. It is left as it is.

    Attributes:
        schema: the record's.
    """

    def __init__(self, path: str, schema: int, known: int) -> None:
        self.schema = schema
        super().__init__(path, f"its schema is {schema}, this version reads up to {known}; a newer version wrote it")


class MisplacedRecordError(RecordError):
    """A sound record that lies where another one belongs. It is left as it is.

    Attributes:
        place: ``<key>/<run_id>`` as it says itself.
    """

    def __init__(self, path: str, place: str) -> None:
        self.place = place
        super().__init__(path, f"it is the record of {place}; `vllm-autofit history check --repair` moves it there")


class PinError(AutofitError):
    """Settings that can't be pinned.

    Attributes:
        field: the setting.
        problem: what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"cannot pin {field}: {problem}")


class WeightsError(AutofitError):
    """The weights of a checkpoint can't be counted.

    Attributes:
        place: the file, folder or hub name.
        reason: the first thing that is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"cannot count the weights of {place}: {reason}. The estimate falls back to the config alone")


class ConfigError(AutofitError):
    """A model's config can't be read, or says something that can't be.

    Attributes:
        where: the file, or the name of the field (``text_config.hidden_size``).
        reason: what is wrong with it.
    """

    def __init__(self, where: str, reason: str, remedy: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"cannot read the model's config: {where}: {reason}. {remedy}")


class UnknownModelError(AutofitError):
    """The config is sound, but its model isn't one that we know the memory of.

    Attributes:
        architecture: what the config names, or its ``model_type``.
        reason: why it isn't understood.
    """

    def __init__(self, architecture: str, reason: str) -> None:
        self.architecture = architecture
        self.reason = reason
        super().__init__(
            f"the memory of {architecture} can't be told from its config ({reason}). "
            "vLLM decides as it would without us"
        )


class FlagError(AutofitError):
    """An option that vLLM, or this command, doesn't have, or a value that it wouldn't take.

    Attributes:
        flag: the option, as it was typed.
        problem: what is wrong with it.
    """

    def __init__(self, flag: str, problem: str, remedy: str) -> None:
        self.flag = flag
        self.problem = problem
        super().__init__(f"{flag}: {problem}. {remedy}")


class UnknownDeviceError(AutofitError):
    """A device name that the catalogue doesn't know, or that means several of its devices.

    Attributes:
        name: as the user typed it.
        candidates: names from the catalogue that it could mean, the likeliest first.
    """

    def __init__(self, name: str, candidates: tuple[str, ...], *, ambiguous: bool) -> None:
        self.name = name
        self.candidates = candidates
        listed = ", ".join(candidates)
        if ambiguous:
            super().__init__(f"{name!r} means several devices: {listed}. Name one of them")
        else:
            close = f"Close to it: {listed}. " if listed else ""
            super().__init__(
                f"no device {name!r} is known. {close}For any other device, give its memory in GiB with --gpu-memory"
            )


class StageFileError(AutofitError):
    """A file of stages that can't be read, or that no share can be given to.

    Attributes:
        place: the file, and what in it.
        problem: what is wrong with it.
    """

    def __init__(self, place: str, problem: str, remedy: str) -> None:
        self.place = place
        self.problem = problem
        super().__init__(f"{place}: {problem}. {remedy}")


class RefusedError(AutofitError, ValueError):
    """A start that can't succeed is not made. The one error of ours that users of vLLM see.

    Attributes:
        reasons: why it can't.
    """

    def __init__(self, reasons: tuple[str, ...], message: str) -> None:
        self.reasons = reasons
        super().__init__(message)
