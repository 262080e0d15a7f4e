"""``vllm-autofit plan``: what a model will take and which settings fit, before anything is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from vllm_autofit.answer import Answer
from vllm_autofit.api import Question, answer
from vllm_autofit.cli import stages
from vllm_autofit.cli.flags import parse_flags
from vllm_autofit.cli.output import say
from vllm_autofit.errors import FlagError
from vllm_autofit.render.document import plan_document
from vllm_autofit.render.launch import config_file, container_command, script, shell_command
from vllm_autofit.render.plan import plan_table
from vllm_autofit.settings import POLICIES, SHARES, read_settings
from vllm_autofit.units import share, size
from vllm_autofit.values import Share

EXIT_FITS, EXIT_DOES_NOT_FIT = 0, 3

RENDERERS: Mapping[str, Callable[[Answer], str]] = {
    "table": plan_table,
    "json": lambda answered: json.dumps(plan_document(answered), indent=1, ensure_ascii=False),
    "yaml": config_file,
    "cli": shell_command,
    "python": script,
    "docker": container_command,
}
TELL_ALL = ("table", "json")
"""Formats that hold warnings and remedies themselves; with the others these go to stderr."""

USAGE = (
    "vllm-autofit plan [MODEL] [vLLM's own flags] [--gpu NAME] [--gpu-memory GIB] [--gpu-free GIB] [--gpu-count N]\n"
    "                         [--vllm-version V] [--policy P] [--share S] [--format F]\n"
    "       vllm-autofit plan --stages FILE [--model MODEL] [--gpu NAME] [...] [--output FILE] [--keep N,N | --refill]"
)
EXAMPLES = """\
examples:
  vllm-autofit plan Qwen/Qwen3-8B                           on this machine
  vllm-autofit plan ./my-model --gpu L4                     a folder with a config.json is enough
  vllm-autofit plan Qwen/Qwen3-32B -tp 2 --max-model-len 32k --gpu "RTX 4090" --gpu-count 2
  vllm-autofit plan Qwen/Qwen3-8B --format yaml > plan.yaml && vllm serve --config plan.yaml
  vllm-autofit plan --stages qwen3_tts.yaml --gpu L4        share the device out between vLLM-Omni's stages

exit status: 0 it fits, or nobody can know (the plan says so); 3 it doesn't fit; 2 the question isn't understood;
1 the answer can't be written
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    # No word is an option to this parser: vLLM's have a parser of their own, and take their abbreviations from it.
    parser = commands.add_parser(
        "plan", help="what a model will take, and which settings fit", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("words", nargs="*")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    own, rest = _own_parser().parse_known_args(options.words)
    settings = read_settings()
    for warning in settings.warnings:
        say(warning)
    if own.share is not None:
        settings = replace(settings, share=own.share)
    if own.stages is not None:
        return stages.run(own, rest, settings)
    stages.check_alone(own)
    flags = parse_flags(rest)
    question = Question(
        model=flags.model,
        options=flags.values,
        gpu=own.gpu,
        gpu_memory_bytes=own.gpu_memory,
        gpu_free_bytes=own.gpu_free,
        gpu_count=own.gpu_count,
        vllm_version=own.vllm_version,
        policy=own.policy,
        usage="llm" if own.format == "python" else "server",
    )
    answered = answer(question, settings)
    if own.format == "docker" and answered.devices[0].kind != "cuda":
        raise FlagError("--format docker", "vLLM's image needs an NVIDIA device", "Name one with --gpu")
    print(RENDERERS[own.format](answered))
    if own.format not in TELL_ALL:
        _tell(answered)
    return EXIT_DOES_NOT_FIT if answered.fits is False else EXIT_FITS


def _own_parser() -> argparse.ArgumentParser:
    """Our own options. Whole names only: beginnings such as ``--gpu-mem`` are vLLM's."""
    parser = _OwnParser(
        prog="vllm-autofit plan",
        usage=USAGE,
        description="What MODEL will take of a device, and the settings with which vLLM fits into it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own = parser.add_argument_group("where it will run (this machine, when nothing is said)")
    own.add_argument("--gpu", metavar="NAME", help="a device by name, such as H100, L4 or 'RTX 4090'")
    own.add_argument("--gpu-memory", metavar="GIB", type=_memory, help="its memory, where it isn't known")
    own.add_argument("--gpu-free", metavar="GIB", type=_memory, help="what is free of it (default: all of it)")
    own.add_argument("--gpu-count", metavar="N", type=int, help="how many there are")
    own.add_argument("--vllm-version", metavar="V", help="such as 0.32 (default: the installed one)")
    how = parser.add_argument_group("how to plan, and what to print")
    how.add_argument("--policy", choices=POLICIES, help="what is given up first (default: VLLM_AUTOFIT_POLICY)")
    how.add_argument(
        "--share", metavar="S", type=_share, help="what it may take of each device (default: VLLM_AUTOFIT_SHARE)"
    )
    how.add_argument("--format", choices=tuple(RENDERERS), default="table")
    stages.add_arguments(parser)
    return parser


class _OwnParser(argparse.ArgumentParser):
    """Raises instead of leaving the process, as for vLLM's options."""

    def error(self, message: str) -> NoReturn:
        flag, _, problem = message.removeprefix("argument ").partition(": ")
        raise FlagError(flag, problem, "`vllm-autofit plan --help` says what it takes")


def _memory(text: str) -> int:
    """Bytes; a bare number is GiB."""
    try:
        return size(text)
    except ValueError:
        expected = "a size such as 24, 22.5GiB or 800MiB, at most 1024TiB"
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None


def _share(text: str) -> Share:
    try:
        return Share(*share(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {SHARES}") from None


def _tell(answered: Answer) -> None:
    for warning in answered.plan.warnings:
        say(warning)
    if answered.fits is False:
        for remedy in answered.plan.remedies:
            say(f"would help: {remedy.change}" + (f" ({remedy.flag})" if remedy.flag else ""))
