"""Functions of ours that do something else than they should, in the middle of a start of vLLM."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import vllm_autofit
from tests.conftest import printed

NOT_IN_A_START = (
    "vllm_autofit.cli",
    "vllm_autofit.__main__",
    "vllm_autofit.answer",
    "vllm_autofit.api",
    "vllm_autofit.doctor",
    "vllm_autofit.experience.exchange",
    "vllm_autofit.experience.inspection",
    "vllm_autofit.facts.catalogue",
    "vllm_autofit.facts.serve_options",
    "vllm_autofit.hooks.report",
    "vllm_autofit.render.document",
    "vllm_autofit.render.history",
    "vllm_autofit.render.launch",
    "vllm_autofit.render.options",
    "vllm_autofit.render.plan",
    "vllm_autofit.render.stages",
    "vllm_autofit.render.start",
    "vllm_autofit.render.table",
    "vllm_autofit.stages",
)
"""The command's own rooms: vLLM never runs them."""


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(vllm_autofit.__path__, "vllm_autofit."):
        if not info.name.startswith(NOT_IN_A_START):
            yield importlib.import_module(info.name)


def raises(*_args: Any, **_kwargs: Any) -> Any:
    """What a broken function does."""
    raise ZeroDivisionError("injected")


def sabotage(target: str, does: Callable[..., Any] = raises) -> list[str]:
    """Make one function do something else wherever it is referred to. Returns a list that fills when it is called."""
    called: list[str] = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        called.append(target)
        return does(*args, **kwargs)

    module_name, _, path = target.partition(":")
    everywhere = list(modules())
    owner: Any = sys.modules[module_name]
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    original = vars(owner)[name]
    if classes:
        setattr(owner, name, property(broken) if isinstance(original, property) else broken)
        return called
    for module in everywhere:
        for attribute, value in list(vars(module).items()):
            if value is original:
                setattr(module, attribute, broken)
        seams = getattr(module, "SEAMS", ())
        if seams and module.__name__.startswith("vllm_autofit.hooks."):
            module.SEAMS = tuple(  # type: ignore[attr-defined]
                dataclasses.replace(seam, wrapper=broken) if seam.wrapper is original else seam for seam in seams
            )
    return called


def our_warnings() -> list[str]:
    """All that we printed but the plan's own words. Before vLLM sets its logging up, warnings are bare."""
    ours = [line for line in printed().splitlines() if "vllm-autofit" in line and " INFO " not in line]
    # Where it can't be told what the user set, vLLM's default is taken for theirs, and is too much for a busy machine.
    about_the_plan = ("more than will be free when vLLM checks", "does not fit by the estimate", "what would help")
    return [line for line in ours if not any(words in line for words in about_the_plan)]


def use_once(llm: Any) -> int:
    """Ask for three tokens and shut the engine down. How many came."""
    from vllm import SamplingParams

    answer = llm.generate(["Hello"], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    return len(answer[0].outputs[0].token_ids)
