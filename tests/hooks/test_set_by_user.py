"""What the user set, in every way that vLLM offers, over real EngineArgs, real parsers and a real LLM.

Each case runs in a process of its own. It checks who chose each of the five fields, that what the user set reaches
vLLM's config unchanged, that the rest was filled or left to vLLM, and that the EngineArgs is afterwards as its user
gave it.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked
from vllm_autofit import FIELDS

pytestmark = pytest.mark.vllm

DEFAULT = 0.92
"""vLLM 0.32's default utilisation, which a user may type too."""
UTIL, LEN, EAGER, KV, SEQS = FIELDS[0], FIELDS[1], FIELDS[2], FIELDS[3], FIELDS[4]

Build = Callable[[str, Path], Any]


def _engine_args() -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs


def _async_engine_args() -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs


def _later(build: Build) -> Build:
    """The same, but not as the first instance of the process."""

    def later(model: str, place: Path) -> Any:
        _engine_args()(model=model)
        return build(model, place)

    return later


def serve(*flags: str) -> Build:
    """``vllm serve MODEL flags``, through vLLM's own command line."""

    def build(model: str, place: Path) -> Any:
        return _async_engine_args().from_cli_args(_parse(["serve", model, *flags]))

    return build


def _parse(words: list[str]) -> Namespace:
    """The namespace that vLLM's command hands to its subcommand."""
    from vllm.entrypoints.cli import main
    from vllm.entrypoints.cli.serve import ServeSubcommand

    caught: list[Namespace] = []
    ServeSubcommand.cmd = staticmethod(caught.append)
    sys.argv = ["vllm", *words]
    main.main()
    caught[0].model = caught[0].model_tag  # what the subcommand does first
    return caught[0]


def config_file(text: str, *flags: str) -> Build:
    """``vllm serve MODEL --config FILE flags``."""

    def build(model: str, place: Path) -> Any:
        file = place / "serve.yaml"
        file.write_text(text)
        return serve("--config", str(file), *flags)(model, place)

    return build


def bench(*flags: str) -> Build:
    """``vllm bench latency --model MODEL flags``."""

    def build(model: str, place: Path) -> Any:
        from vllm.entrypoints.cli import main
        from vllm.entrypoints.cli.benchmark import latency

        caught: list[Namespace] = []
        latency.main = caught.append
        sys.argv = ["vllm", "bench", "latency", "--model", model, *flags]
        main.main()
        return _engine_args().from_cli_args(caught[0])

    return build


def script_parser(*flags: str) -> Build:
    """A script's own parser: ``EngineArgs.add_cli_args(FlexibleArgumentParser())``, before any plugin is loaded."""

    def build(model: str, place: Path) -> Any:
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = _engine_args().add_cli_args(FlexibleArgumentParser())
        return _engine_args().from_cli_args(parser.parse_args(["--model", model, *flags]))

    return build


def api_server(*flags: str) -> Build:
    """``python -m vllm.entrypoints.openai.api_server --model MODEL flags``: its parser and what it does with it."""

    def build(model: str, place: Path) -> Any:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = make_arg_parser(FlexibleArgumentParser())
        return _async_engine_args().from_cli_args(parser.parse_args(["--model", model, *flags]))

    return build


def direct(**fields: Any) -> Build:
    """``EngineArgs(model=MODEL, ...)``, its arguments unpacked."""
    return lambda model, place: _engine_args()(model=model, **fields)


def _assigned(model: str, place: Path) -> Any:
    args = _engine_args()(model=model)
    args.enforce_eager = False
    args.gpu_memory_utilization = DEFAULT
    return args


def _positional(model: str, place: Path) -> Any:
    """Every field by position, as ``EngineArgs(*values)``."""
    args = _engine_args()
    first = args(model)
    names = [field.name for field in dataclasses.fields(args) if field.init]
    values = [getattr(first, name) for name in names]
    values[names.index(UTIL)] = DEFAULT
    return args(*values)


def _namespace_pickled(model: str, place: Path) -> Any:
    space = pickle.loads(pickle.dumps(_parse(["serve", model, "--max-num-seqs", "8"])))
    return _async_engine_args().from_cli_args(space)


def _plain_subclass(model: str, place: Path) -> Any:
    class Sub(_engine_args()):  # type: ignore[misc]
        def create_model_config(self) -> Any:
            return super().create_model_config()

        def create_engine_config(self, *args: Any, **kwargs: Any) -> Any:
            return super().create_engine_config(*args, **kwargs)

    return Sub(model=model, max_num_seqs=8)


def _dataclass_subclass(model: str, place: Path) -> Any:
    @dataclasses.dataclass
    class Sub(_engine_args()):  # type: ignore[misc]
        extra: int = 1

    return Sub(model=model, extra=2)


def _dataclass_subclass_own_default(model: str, place: Path) -> Any:
    _engine_args()(model=model)

    @dataclasses.dataclass
    class Sub(_engine_args()):  # type: ignore[misc]
        gpu_memory_utilization: float = 0.5

    return Sub(model=model)


CASES: dict[str, tuple[Build, set[str]]] = {
    # EngineArgs as the first instance of the process: our plugin is loaded while it is being built
    "first, nothing": (lambda m, p: _engine_args()(model=m), set()),
    "first, positional model": (lambda m, p: _engine_args()(m), set()),
    "first, default utilisation typed": (lambda m, p: _engine_args()(model=m, gpu_memory_utilization=0.92), {UTIL}),
    "first, all defaults typed": (
        lambda m, p: _engine_args()(model=m, gpu_memory_utilization=0.92, enforce_eager=False, kv_cache_dtype="auto"),
        {UTIL, EAGER, KV},
    ),
    "first, context": (lambda m, p: _engine_args()(model=m, max_model_len=2048), {LEN}),
    "first, automatic context": (lambda m, p: _async_engine_args()(model=m, max_model_len=-1), {LEN}),
    "first, async, sequences": (lambda m, p: _async_engine_args()(model=m, max_num_seqs=8), {SEQS}),
    "first, unpacked: what can't be told counts as set": (direct(), {EAGER, KV}),
    "first, unpacked with the default utilisation": (direct(gpu_memory_utilization=float("0.92")), {UTIL, EAGER, KV}),
    # later instances
    "later, nothing": (_later(lambda m, p: _engine_args()(model=m)), set()),
    "later, unpacked nothing": (_later(direct()), set()),
    "later, unpacked false": (_later(direct(enforce_eager=False)), {EAGER}),
    "later, unpacked default utilisation": (_later(direct(gpu_memory_utilization=DEFAULT)), {UTIL}),
    "later, unpacked KV auto": (_later(direct(kv_cache_dtype="auto")), {KV}),
    "later, async, eager": (_later(lambda m, p: _async_engine_args()(model=m, enforce_eager=True)), {EAGER}),
    "positional, every field": (_positional, {UTIL}),
    "assigned afterwards": (_later(_assigned), {UTIL, EAGER}),
    "dataclasses.replace": (
        lambda m, p: dataclasses.replace(_engine_args()(model=m, max_num_seqs=8), max_model_len=1024),
        {SEQS, LEN},
    ),
    "copy": (lambda m, p: copy.copy(_engine_args()(model=m, max_num_seqs=8)), {SEQS}),
    "deepcopy": (lambda m, p: copy.deepcopy(_engine_args()(model=m, gpu_memory_utilization=0.5)), {UTIL}),
    "pickle": (lambda m, p: pickle.loads(pickle.dumps(_engine_args()(model=m, max_num_seqs=8))), {SEQS}),
    "vars": (lambda m, p: _engine_args()(**vars(_engine_args()(model=m, max_num_seqs=8))), {SEQS}),
    "subclass that overrides both methods": (_plain_subclass, {SEQS}),
    "dataclass subclass": (_dataclass_subclass, set()),
    "dataclass subclass, defined later, with a default of its own": (_dataclass_subclass_own_default, {UTIL}),
    # a script's parser, made before the plugin is loaded: only the float's identity tells
    "script parser, nothing": (script_parser(), {EAGER, KV}),
    "script parser, default utilisation typed": (
        script_parser("--gpu-memory-utilization", "0.92"),
        {UTIL, EAGER, KV},
    ),
    # the command line
    "serve, nothing": (serve(), set()),
    "serve, default utilisation typed": (serve("--gpu-memory-utilization", "0.92"), {UTIL}),
    "serve, underscores and =": (serve("--gpu_memory_utilization=0.92"), {UTIL}),
    "serve, other name of the option": (serve("--device-memory-utilization", "0.92"), {UTIL}),
    "serve, abbreviated": (serve("--gpu-mem", "0.5"), {UTIL}),
    "serve, 8k": (serve("--max-model-len", "8k"), {LEN}),
    "serve, =8K": (serve("--max-model-len=8K"), {LEN}),
    "serve, 1K with underscores": (serve("--max_model_len", "1K"), {LEN}),
    "serve, auto": (serve("--max-model-len", "auto"), {LEN}),
    "serve, eager": (serve("--enforce-eager"), {EAGER}),
    "serve, not eager": (serve("--no-enforce-eager"), {EAGER}),
    "serve, KV auto": (serve("--kv-cache-dtype", "auto"), {KV}),
    "serve, KV bfloat16": (serve("--kv-cache-dtype=bfloat16"), {KV}),
    "serve, sequences among others": (serve("-O0", "--max-num-seqs", "16", "--seed", "1"), {SEQS}),
    "serve, all five": (
        serve(
            "--gpu-memory-utilization=0.92",
            "--max-model-len=2k",
            "--no-enforce-eager",
            "--kv-cache-dtype=auto",
            "--max-num-seqs=4",
        ),
        set(FIELDS),
    ),
    "api_server, nothing": (api_server(), set()),
    "api_server, two": (api_server("--max-model-len", "4096", "--gpu-memory-utilization", "0.5"), {LEN, UTIL}),
    "bench latency, nothing": (bench(), set()),
    "bench latency, default utilisation typed": (bench("--gpu-memory-utilization", "0.92"), {UTIL}),
    "namespace pickled to a child": (_namespace_pickled, {SEQS}),
    # a --config file
    "config, default utilisation": (config_file("gpu-memory-utilization: 0.92\n"), {UTIL}),
    "config, underscores": (config_file("max_num_seqs: 8\nmax_model_len: 2048\n"), {SEQS, LEN}),
    "config, eager true": (config_file("enforce-eager: true\n"), {EAGER}),
    "config, eager false": (config_file("enforce-eager: false\n"), {EAGER}),
    "config, nothing of ours": (config_file("seed: 3\n"), set()),
    "config and flag": (config_file("max-num-seqs: 8\n", "--max-num-seqs", "4"), {SEQS}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_user_set_is_known_and_kept(
    name: str, forked: Forked, tiny_model: Path, tmp_path: Path, small_start: None
) -> None:
    build, expected = CASES[name]

    def child() -> dict[str, Any]:
        from vllm_autofit.hooks.marks import set_by_user
        from vllm_autofit.hooks.runs import run_of

        args = build(str(tiny_model), tmp_path)
        given = {field: getattr(args, field) for field in FIELDS}
        config = args.create_engine_config()
        after = {field: getattr(args, field) for field in FIELDS}
        run = run_of(config)
        assert run is not None
        chosen = {field: run["record"]["settings"][field]["chosen_by"] for field in FIELDS}
        kept = {
            UTIL: config.cache_config.gpu_memory_utilization,
            LEN: config.model_config.original_max_model_len,
            EAGER: config.model_config.enforce_eager,
            KV: config.cache_config.cache_dtype,
            SEQS: config.scheduler_config.max_num_seqs,
        }
        for field, value in kept.items():
            assert type(value) in (float, int, bool, str, type(None)), f"{field} reached vLLM as {type(value)}"
        return {
            "given": {field: _plain(value) for field, value in given.items()},
            "chosen": chosen,
            "config": kept,
            "afterwards": sorted(set_by_user(args)),
            "unchanged": {field for field in FIELDS if after[field] == given[field]},
        }

    seen = forked(child)

    assert {field for field, who in seen["chosen"].items() if who == "user"} == expected
    for field in expected:
        assert seen["config"][field] == seen["given"][field]
    if UTIL not in expected:
        assert seen["chosen"][UTIL] == "estimate"
        assert 0 < seen["config"][UTIL] < DEFAULT
    if LEN not in expected:
        assert seen["config"][LEN] == -1
    assert seen["afterwards"] == sorted(expected), "the EngineArgs can be used for another start"
    assert seen["unchanged"] >= {UTIL, LEN, EAGER, KV}


def _plain(value: Any) -> Any:
    from vllm_autofit.hooks.marks import unmark

    return unmark(value)


def test_there_are_at_least_forty_ways() -> None:
    assert len(CASES) + len(LLM_CASES) >= 40


LLM_CASES: dict[str, tuple[Callable[[str], Any], set[str]]] = {
    "nothing": (lambda m: _llm()(m), set()),
    "model by keyword": (lambda m: _llm()(model=m), set()),
    "default utilisation typed": (lambda m: _llm()(m, gpu_memory_utilization=0.92), {UTIL}),
    "eager": (lambda m: _llm()(m, enforce_eager=True), {EAGER}),
    "three, two of them in **kwargs of LLM": (
        lambda m: _llm()(model=m, enforce_eager=False, kv_cache_dtype="auto", max_num_seqs=8),
        {EAGER, KV, SEQS},
    ),
    "context": (lambda m: _llm()(m, max_model_len=2048), {LEN}),
    "unpacked": (lambda m: _llm()(**{"model": m, "max_model_len": 1024}), {LEN, EAGER, KV}),
    "from_engine_args": (lambda m: _llm().from_engine_args(_engine_args()(model=m, max_num_seqs=8)), {SEQS}),
}


def _llm() -> Any:
    from vllm import LLM

    return LLM


@pytest.mark.e2e
@pytest.mark.parametrize("name", LLM_CASES)
def test_a_real_llm_starts_with_what_the_user_set(
    name: str, forked: Forked, tiny_model: Path, small_start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, expected = LLM_CASES[name]
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # no compilation: what is tested here comes before it
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def child() -> dict[str, Any]:
        from vllm_autofit.hooks.runs import run_of

        config = build(str(tiny_model)).llm_engine.vllm_config
        run = run_of(config)
        assert run is not None
        return {field: run["record"]["settings"][field]["chosen_by"] for field in FIELDS}

    chosen = forked(child)

    assert {field for field, who in chosen.items() if who == "user"} == expected
