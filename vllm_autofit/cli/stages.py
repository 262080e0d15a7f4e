"""``vllm-autofit plan --stages FILE``: shares of the devices for stages that live together on them."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vllm_autofit.answer import Answer
from vllm_autofit.api import Question, answer
from vllm_autofit.cli.flags import Flags, parse_flags
from vllm_autofit.cli.output import say
from vllm_autofit.errors import DeviceError, FlagError, StageFileError
from vllm_autofit.facts.config import load_config
from vllm_autofit.planning.defaults import NEWEST, parsed_version
from vllm_autofit.planning.stage_shares import share_out
from vllm_autofit.render.stages import sharing_lines, shortage_lines
from vllm_autofit.settings import Settings
from vllm_autofit.stages.claims import Need, claims_of, room_of
from vllm_autofit.stages.needs import needs_of
from vllm_autofit.stages.package import shares_of_package
from vllm_autofit.stages.reading import read_stages
from vllm_autofit.stages.stage import StageFile
from vllm_autofit.stages.topology import parts_of, with_names
from vllm_autofit.stages.writing import filled

EXIT_DONE, EXIT_DOES_NOT_FIT = 0, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this kind of plan."""
    group = parser.add_argument_group("several engines on one device (vLLM-Omni)")
    group.add_argument("--stages", metavar="FILE", type=Path, help="fill the shares of the stages in this file")
    group.add_argument("--output", metavar="FILE", type=Path, help="where the filled file goes (default: stdout)")
    group.add_argument("--keep", metavar="N,N", type=_numbers, help="stages whose share stays, whoever set it")
    group.add_argument("--refill", action="store_true", help="give every stage a new share, whoever set its old one")


def check_alone(own: argparse.Namespace) -> None:
    """Options of ours need ``--stages``.

    Raises:
        FlagError: one was given without it.
    """
    given = {"--output": own.output, "--keep": own.keep, "--refill": own.refill}
    name = next((name for name, value in given.items() if value), None)
    if name is not None:
        raise FlagError(name, "it is about a file of stages, and none is named", "Name it with --stages FILE")


def run(own: argparse.Namespace, rest: Sequence[str], settings: Settings) -> int:
    """Fill the file, and explain every share on stderr."""
    flags = _flags(rest)
    revision = None if "revision" not in flags.values else str(flags.values["revision"])
    config = {} if flags.model is None else load_config(flags.model, revision)
    file = read_stages(own.stages)
    kept = _kept(file, own)
    parts = parts_of(file, str(config["model_type"]) if "model_type" in config else None)
    stages = with_names(file.stages, parts)
    for number in sorted(parts.keys() - {stage.id for stage in stages}):
        say(f"stage {number} ({parts[number].name}) isn't in {file.path}: what vLLM-Omni gives it isn't planned for")
    answered = _answer(file, own, settings)
    devices = dict(enumerate(answered.devices))
    rules = settings.rules if own.policy is None else replace(settings.rules, policy=own.policy)
    needs: dict[int, Need] = {}
    notes: tuple[str, ...] = ()
    if flags.model is not None:
        needs, notes = needs_of(
            stages,
            devices,
            flags.model,
            revision,
            config,
            version=parsed_version(answered.vllm_version) or NEWEST,
            least_context=rules.min_context_tokens,
        )
    claims = claims_of(stages, frozenset(kept), needs)
    sharing = share_out(claims, {number: room_of(device, rules) for number, device in devices.items()})
    for note in notes:
        say(note)
    if not sharing.fits:
        for line in shortage_lines(sharing, stages, claims):
            say(line)
        return EXIT_DOES_NOT_FIT
    _write(file, filled(file, {n: share for n, share in sharing.shares.items() if n not in kept}), own.output)
    for line in sharing_lines(sharing, stages, claims, needs, kept):
        say(line)
    return EXIT_DONE


def _flags(rest: Sequence[str]) -> Flags:
    """vLLM's options that make sense for several stages at once: the model and its revision."""
    flags = parse_flags(rest)
    stray = next((name for name in flags.values if name != "revision"), None)
    if stray is not None:
        raise FlagError(
            f"--{stray.replace('_', '-')}",
            "a stage's options are its own",
            "Write it in the file, at the stage it is for",
        )
    return flags


def _kept(file: StageFile, own: argparse.Namespace) -> dict[int, str]:
    """Why a share stays, by the number of its stage."""
    chosen = own.keep or ()
    shares = {stage.id: stage.share for stage in file.stages}
    wrong = next((number for number in chosen if shares.get(number) is None), None)
    if wrong is not None:
        known = ", ".join(str(number) for number, share in shares.items() if share is not None)
        raise FlagError(
            f"--keep {wrong}", f"{file.path} has no share for such a stage", f"It has some for: {known or 'none'}"
        )
    kept: dict[int, str] = {}
    if not own.refill:
        defaults = shares_of_package(file)
        set_here = (number for number, share in shares.items() if share is not None and number not in defaults)
        kept = {number: f"set in {_source(file, number)} (--refill gives it up)" for number in set_here}
    return {**kept, **dict.fromkeys(chosen, "--keep names it")}


def _source(file: StageFile, number: int) -> str:
    return str(next(stage.share_from for stage in file.stages if stage.id == number))


def _answer(file: StageFile, own: argparse.Namespace, settings: Settings) -> Answer:
    """The devices by the numbers that the file gives them: as described, or those that this machine shows."""
    wanted = 1 + max((device for stage in file.stages for device in stage.devices), default=0)
    described = own.gpu is not None or own.gpu_memory is not None
    answered = answer(
        Question(
            model=None,
            gpu=own.gpu,
            gpu_memory_bytes=own.gpu_memory,
            gpu_free_bytes=own.gpu_free,
            gpu_count=wanted if described and own.gpu_count is None else own.gpu_count,
            vllm_version=own.vllm_version,
            policy=own.policy,
        ),
        settings,
    )
    if answered.devices[0].kind != "cuda":
        raise DeviceError(
            "this machine's GPUs",
            "no NVIDIA driver is here",
            "Say with --gpu or --gpu-memory where the stages will run",
        )
    if wanted > len(answered.devices):
        stage = next(each for each in file.stages if wanted - 1 in each.devices)
        raise StageFileError(
            f"{file.path}, {stage.label}",
            f"it names device {wanted - 1}, and there are {len(answered.devices)}, numbered from 0",
            "Correct its devices, or say with --gpu and --gpu-count where the stages will run",
        )
    return answered


def _write(file: StageFile, text: str, output: Path | None) -> None:
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as files of YAML are, whatever the terminal is
        print(text, end="")
        return
    try:
        with output.open("w", encoding="utf-8", newline="") as target:
            target.write(text)
    except OSError as error:
        raise StageFileError(str(output), f"it can't be written ({error.strerror})", "Name another --output") from error
    if file.base is not None and output.resolve().parent != file.path.resolve().parent:
        say(f"{output} is based on {file.base}, which vLLM-Omni looks for beside it: copy that file there, too")


def _numbers(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers of stages, such as 0,2")
    return tuple(int(word) for word in words)
