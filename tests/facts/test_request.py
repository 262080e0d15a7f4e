"""``EngineArgs`` -> ``Request``, with a stand-in that has the same fields: nothing here needs vLLM."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, start_python
from vllm_autofit import FIELDS
from vllm_autofit.facts.request import KNOBS, local_ranks, plain, read_request


class Level(enum.IntEnum):
    ONE = 1
    TWO = 2


@dataclass
class CompilationConfig:
    """A setting that is a dataclass itself."""

    level: int | None = None
    cache_dir: str = ""
    cudagraph_capture_sizes: list[int] | None = None
    traces: list[str] = field(default_factory=list, init=False)


@dataclass
class EngineArgs:
    """Some of vLLM's fields, with vLLM's defaults."""

    model: str = "some/model"
    gpu_memory_utilization: float = 0.92
    max_model_len: int | None = None
    enforce_eager: bool = False
    kv_cache_dtype: str = "auto"
    max_num_seqs: int | None = None
    dtype: str = "auto"
    block_size: int | None = None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    data_parallel_size_local: int | None = None
    nnodes: int = 1
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    data_parallel_rank: int | None = None
    optimization_level: Level = Level.TWO
    hf_overrides: Any = field(default_factory=dict)
    hf_token: str | None = None
    tokenizer: str | None = None
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    kv_transfer_config: Any = None
    speculative_config: dict[str, Any] | None = None
    spec_method: str | None = None
    spec_model: str | None = None
    spec_tokens: int | None = None
    of_tomorrow: str = "default"
    compilation_config: CompilationConfig = field(default_factory=CompilationConfig)
    disable_log_stats: bool = False


@dataclass
class OldEngineArgs:
    """What a vLLM without most knobs has."""

    model: str = "some/model"
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    enforce_eager: bool = False
    kv_cache_dtype: str = "auto"
    max_num_seqs: int | None = None


def test_the_five_fields_are_read_as_they_stand() -> None:
    asked = read_request(EngineArgs(max_model_len=4096), ["max_model_len"], {})
    assert asked.model == "some/model"
    assert tuple(asked.values) == FIELDS
    assert asked.values["max_model_len"] == 4096
    assert asked.values["gpu_memory_utilization"] == 0.92
    assert asked.set_by_user == {"max_model_len"}


def test_an_ordinary_launch_is_one_rank_on_one_node_with_nothing_changed() -> None:
    asked = read_request(EngineArgs(), [], {})
    assert (asked.local_ranks, asked.spans_nodes, asked.kv_cache_fixed_by) == (1, False, None)
    assert asked.knobs_changed == frozenset()


def test_knobs_are_the_settings_that_memory_depends_on() -> None:
    asked = read_request(EngineArgs(), [], {})
    assert asked.knobs["dtype"] == "auto"
    assert asked.knobs["compilation_config"] == {}
    assert "disable_log_stats" not in asked.knobs
    assert not asked.knobs.keys() & set(FIELDS)
    assert not set(KNOBS) & set(FIELDS)


def test_knobs_that_differ_from_their_default_are_named() -> None:
    changed = EngineArgs(
        dtype="bfloat16", limit_mm_per_prompt={"image": 2}, compilation_config=CompilationConfig(level=3)
    )
    asked = read_request(changed, [], {})
    assert asked.knobs_changed == {"dtype", "limit_mm_per_prompt", "compilation_config"}
    assert asked.knobs["compilation_config"] == {"level": 3}


def test_knobs_set_to_an_equal_default_are_not_changed() -> None:
    asked = read_request(
        EngineArgs(dtype="auto", limit_mm_per_prompt={}, compilation_config=CompilationConfig()), [], {}
    )
    assert asked.knobs_changed == frozenset()


@pytest.mark.parametrize(
    "unchanged",
    [
        {"optimization_level": 2},
        {"tensor_parallel_size": 1},
        {"tokenizer": "some/model"},
        {"compilation_config": CompilationConfig(cache_dir="/elsewhere")},
        {"hf_token": "hf_secret"},
        {"data_parallel_rank": None},
    ],
    ids=str,
)
def test_what_vllm_takes_for_the_same_is_not_changed(unchanged: dict[str, Any]) -> None:
    assert read_request(EngineArgs(**unchanged), [], {}).knobs_changed == frozenset()


def test_a_setting_that_no_table_names_is_a_knob_once_it_is_changed() -> None:
    assert "of_tomorrow" not in read_request(EngineArgs(), [], {}).knobs
    asked = read_request(EngineArgs(of_tomorrow="secret"), [], {})
    assert asked.knobs_changed == {"of_tomorrow"}
    assert "secret" not in str(asked.knobs["of_tomorrow"])


def test_settings_that_may_hold_a_secret_leave_a_digest() -> None:
    one, two = (read_request(EngineArgs(hf_overrides={"token": text}), [], {}) for text in ("secret", "other"))
    assert "secret" not in str(one)
    assert one.knobs["hf_overrides"] != two.knobs["hf_overrides"]
    assert read_request(EngineArgs(), [], {}).knobs["hf_overrides"] == {}


def test_a_rank_that_is_started_by_itself_is_a_knob_but_not_which_one() -> None:
    one, two = (read_request(EngineArgs(data_parallel_rank=rank), [], {}) for rank in (0, 1))
    assert one.knobs_changed == {"data_parallel_rank"}
    assert one == two


@pytest.mark.parametrize("drawn", [{"engine_id": "drawn"}, {"engine_id": "drawn", "kv_port": 1}])
def test_what_differs_at_every_start_is_not_read(drawn: dict[str, Any]) -> None:
    connector = {"kv_connector": "Some"}
    one, two = (
        read_request(EngineArgs(kv_transfer_config=config), [], {}) for config in (connector, connector | drawn)
    )
    assert one == two
    assert one.knobs_changed == {"kv_transfer_config"}


def test_short_forms_of_speculation_are_read_as_vllm_does() -> None:
    short = read_request(EngineArgs(spec_method="ngram", spec_model="draft", spec_tokens=3), [], {})
    whole = {"method": "ngram", "model": "draft", "num-speculative-tokens": 3}
    assert short == read_request(EngineArgs(speculative_config=whole), [], {})
    assert short.knobs["speculative_config"] == {"method": "ngram", "model": "draft", "num_speculative_tokens": 3}
    mixed = EngineArgs(spec_tokens=3, speculative_config={"method": "ngram", "model": "draft"})
    assert read_request(mixed, [], {}) == short
    assert short.knobs_changed == {"speculative_config"}


def test_what_vllm_noted_in_the_speculative_config_is_not_the_users() -> None:
    asked = {"method": "ngram"}
    noted = asked | {"target_model_config": Opaque(), "target_parallel_config": Opaque()}
    one, two = (read_request(EngineArgs(speculative_config=config), [], {}) for config in (asked, noted))
    assert one == two


def test_knobs_that_this_vllm_lacks_are_skipped() -> None:
    asked = read_request(OldEngineArgs(), [], {})
    assert asked.knobs == {}
    assert asked.local_ranks == 1


def test_environment_variables_that_memory_depends_on_are_knobs_when_set() -> None:
    environ = {"VLLM_USE_V2_MODEL_RUNNER": "1", "NCCL_BUFFSIZE": "", "HOME": "/home/someone", "VLLM_OF_TOMORROW": "1"}
    asked = read_request(EngineArgs(), [], environ)
    assert asked.knobs["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    assert asked.knobs_changed == {"VLLM_USE_V2_MODEL_RUNNER"}
    asked = read_request(EngineArgs(), [], environ, variables=["VLLM_OF_TOMORROW"])
    assert asked.knobs_changed == {"VLLM_USE_V2_MODEL_RUNNER", "VLLM_OF_TOMORROW"}


def test_reading_leaves_the_engine_args_alone() -> None:
    engine_args = EngineArgs(limit_mm_per_prompt={"image": 2})
    before = replace(engine_args)
    read_request(engine_args, FIELDS, {})
    assert engine_args == before


# How it is spread


def test_engines_that_a_script_starts_one_per_rank_are_counted() -> None:
    assert local_ranks(EngineArgs(), {"VLLM_DP_SIZE": "4"}) == 4


def test_ranks_of_an_external_launcher_are_as_many_as_it_started_here() -> None:
    engine_args = EngineArgs(tensor_parallel_size=8)
    assert local_ranks(engine_args, {"LOCAL_WORLD_SIZE": "4"}) == 8, "somebody else's variable"
    engine_args.distributed_executor_backend = "external_launcher"  # type: ignore[attr-defined]
    assert local_ranks(engine_args, {"LOCAL_WORLD_SIZE": "4"}) == 4
    assert local_ranks(engine_args, {}) == 8


def test_where_no_utilisation_can_be_chosen_the_request_says_why() -> None:
    engine_args = EngineArgs()
    engine_args.load_format = "ipc_cache"  # type: ignore[attr-defined]
    assert read_request(engine_args, [], {}).utilization_left_to_vllm
    engine_args.model_loader_extra_config = {"mode": "copy"}  # type: ignore[attr-defined]
    assert read_request(engine_args, [], {}).utilization_left_to_vllm is None
    assert read_request(EngineArgs(), [], {}).utilization_left_to_vllm is None


@pytest.mark.parametrize("backend", ["mp", "ray"])
def test_engines_on_other_machines_span_nodes(backend: str) -> None:
    engine_args = EngineArgs(data_parallel_size=4, data_parallel_size_local=2)
    engine_args.data_parallel_backend = backend  # type: ignore[attr-defined]
    asked = read_request(engine_args, [], {})
    assert asked.spans_nodes
    assert asked.planned_in_parts is (backend == "mp"), "Ray's engines get the config of the one that starts them"


@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2}, 2),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4}, 8),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4, "data_parallel_size_local": 2}, 4),
        ({"tensor_parallel_size": 4, "nnodes": 2}, 2),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4, "nnodes": 2}, 4),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4, "data_parallel_size_local": 2, "nnodes": 2}, 4),
        ({"nnodes": 2}, 1),
    ],
    ids=str,
)
def test_ranks_on_this_machine_are_the_product_of_the_parallel_sizes(sizes: dict[str, int], ranks: int) -> None:
    engine_args = EngineArgs(**sizes)  # type: ignore[arg-type]
    assert local_ranks(engine_args, {}) == ranks
    assert read_request(engine_args, [], {}).local_ranks == ranks


@pytest.mark.parametrize(
    ("engine_args", "facts", "spans"),
    [
        (EngineArgs(nnodes=2), {}, True),
        (EngineArgs(), {"headless": True}, True),
        (EngineArgs(tensor_parallel_size=16), {"visible_devices": 8}, True),
        (EngineArgs(tensor_parallel_size=8), {"visible_devices": 8}, False),
        (EngineArgs(tensor_parallel_size=16), {"visible_devices": None}, False),
    ],
    ids=["two nodes", "headless", "more ranks than devices", "as many ranks as devices", "unknown devices"],
)
def test_a_launch_over_several_machines_is_noticed(engine_args: EngineArgs, facts: dict[str, Any], spans: bool) -> None:
    assert read_request(engine_args, [], {}, **facts).spans_nodes is spans


@pytest.mark.parametrize(
    ("fields", "environ", "in_parts"),
    [
        ({}, {}, False),
        ({"data_parallel_size": 4, "tensor_parallel_size": 2}, {}, False),
        ({"nnodes": 2}, {}, True),
        ({"distributed_executor_backend": "external_launcher"}, {}, True),
        ({"distributed_executor_backend": "ray", "tensor_parallel_size": 16}, {}, False),
        ({"data_parallel_rank": 0}, {}, True),
        ({"data_parallel_start_rank": 0}, {}, True),
        ({"data_parallel_hybrid_lb": True}, {}, True),
        ({"data_parallel_hybrid_lb": False, "data_parallel_external_lb": False}, {}, False),
        ({}, {"VLLM_DP_SIZE": "2"}, True),
    ],
    ids=str,
)
def test_parts_that_plan_for_themselves_are_noticed(
    fields: dict[str, Any], environ: dict[str, str], in_parts: bool
) -> None:
    engine_args = EngineArgs()
    for name, value in fields.items():
        setattr(engine_args, name, value)
    assert read_request(engine_args, [], environ, visible_devices=8).planned_in_parts is in_parts
    assert read_request(engine_args, [], environ, headless=True).planned_in_parts


# What fixes the KV cache


@pytest.mark.parametrize(
    ("engine_args", "environ", "fixed_by"),
    [
        (EngineArgs(kv_cache_memory_bytes=GIB), {}, "kv_cache_memory_bytes"),
        (EngineArgs(num_gpu_blocks_override=0), {}, "num_gpu_blocks_override"),
        (EngineArgs(), {"VLLM_CPU_KVCACHE_SPACE": "4"}, "VLLM_CPU_KVCACHE_SPACE"),
        (EngineArgs(), {"VLLM_CPU_KVCACHE_SPACE": ""}, None),
        (EngineArgs(), {"VLLM_ENABLE_STARTUP_PLAN": "1"}, "VLLM_ENABLE_STARTUP_PLAN"),
        (EngineArgs(), {"VLLM_ENABLE_STARTUP_PLAN": "0"}, None),
    ],
)
def test_a_setting_that_fixes_the_kv_cache_is_named(
    engine_args: EngineArgs, environ: dict[str, str], fixed_by: str | None
) -> None:
    assert read_request(engine_args, [], environ).kv_cache_fixed_by == fixed_by


@pytest.mark.parametrize(
    ("variable", "version", "kind", "fixes"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", (0, 32), "cpu", True),
        ("VLLM_CPU_KVCACHE_SPACE", (0, 32), "cuda", False),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 32), "cuda", True),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 32), "cpu", False),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 19), "cuda", False),
    ],
)
def test_a_variable_counts_only_where_this_vllm_reads_it(
    variable: str, version: tuple[int, int], kind: str, fixes: bool
) -> None:
    asked = read_request(EngineArgs(), [], {variable: "1"}, version=version, kind=kind)
    assert asked.kv_cache_fixed_by == (variable if fixes else None)
    assert (variable in asked.knobs_changed) is fixes


def test_the_cpu_backends_variable_replaces_the_size_that_a_flag_gives() -> None:
    asked = read_request(EngineArgs(kv_cache_memory_bytes=GIB), [], {"VLLM_CPU_KVCACHE_SPACE": "4"})
    assert asked.kv_cache_fixed_by == "VLLM_CPU_KVCACHE_SPACE"


# Plain values


class Backend(enum.Enum):
    FLASH = object()


class Opaque:
    """Its repr holds an address."""


def some_function() -> None:
    """Passed as ``hf_overrides``, say."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("auto", "auto"),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        ({"b": 1, "a": (2,)}, {"a": [2], "b": 1}),
        ({1: "one"}, {"1": "one"}),
        ({"c", "a", "b"}, ["a", "b", "c"]),
        (Backend.FLASH, "FLASH"),
        (CompilationConfig(level=3), {"cache_dir": "", "level": 3}),
        (CompilationConfig, f"{__name__}.CompilationConfig"),
        (Opaque(), f"{__name__}.Opaque"),
        (PurePosixPath("/x"), "PurePosixPath('/x')"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_are_what_json_holds(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value))) == expected


def test_functions_are_told_apart_by_what_they_do() -> None:
    def one(config: Any) -> Any:
        return [config.update(layers=1) for _ in range(1)]

    functions = {
        "one": one,
        "two": lambda config: config.update(layers=1),
        "three": lambda config: config.update(layers=2),
        "four": lambda config: config.clear(layers=2),
    }
    assert len({plain(each) for each in functions.values()}) == len(functions)
    assert plain(one) == plain(one)
    assert "0x" not in plain(one)
    assert plain(some_function).startswith(f"{__name__}.some_function ")


def test_keys_of_a_plain_mapping_are_in_order_whatever_the_order_they_came_in() -> None:
    assert list(plain({"b": 1, "a": 2})) == ["a", "b"]


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(json_values)
def test_json_is_plain_already(value: Any) -> None:
    assert plain(value) == value


@given(st.sets(st.text(max_size=5) | st.integers()))
def test_sets_come_out_in_one_order(value: set[str | int]) -> None:
    assert plain(value) == plain(frozenset(sorted(value, key=str, reverse=True)))


def test_every_process_reads_the_same_request() -> None:
    script = (
        "from tests.facts.test_request import EngineArgs, Opaque, read_request, some_function\n"
        "args = EngineArgs(limit_mm_per_prompt={'image': {'a', 'b', 'c'}, 'x': Opaque()}, hf_overrides=some_function)\n"
        "print(read_request(args, [], {}).knobs)"
    )
    processes = [start_python(script, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    one, two = (process.communicate(timeout=60) for process in processes)
    assert one == two
    assert one[0] != ""
