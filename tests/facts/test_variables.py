"""Which environment variables count, and how their values are written down."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Forked
from vllm_autofit import VARIABLES
from vllm_autofit.facts.variables import (
    MEMORY,
    NO_MEMORY,
    OPAQUE,
    READ_SINCE,
    as_read,
    digest,
    memory_variables,
    unknown_variables,
    without_memory,
)

KNOWN = json.loads((Path(__file__).parent.parent / "data" / "vllm_settings.json").read_text())["variables"]
COUNTED = [name for names in MEMORY.values() for name in names.split()]
PASSED_OVER = [name for names in NO_MEMORY.values() for name in names.split()]


@pytest.mark.vllm
def test_every_variable_of_the_installed_vllm_is_named(forked: Forked) -> None:
    """Where this fails, vLLM reads a new variable: see what it does, and name it in ``facts/variables.py``."""

    def unknown() -> list[str]:
        from vllm import envs

        assert len(envs.environment_variables) > 100
        return unknown_variables(envs.environment_variables)

    assert forked(unknown) == []


def test_every_variable_of_the_versions_that_were_read_is_named() -> None:
    assert len(KNOWN) > 300
    assert unknown_variables(KNOWN) == []


def test_no_name_is_left_of_a_variable_that_no_version_reads() -> None:
    of_vllm = [name for name in (*COUNTED, *PASSED_OVER) if name.startswith("VLLM_") and not name.endswith("*")]
    assert sorted(set(of_vllm) - KNOWN.keys()) == []
    beginnings = [name[:-1] for name in PASSED_OVER if name.endswith("*")]
    assert [each for each in beginnings if not any(name.startswith(each) for name in (*KNOWN, *VARIABLES))] == []


def test_every_variable_is_named_once_and_on_one_side() -> None:
    assert [name for name, times in Counter((*COUNTED, *PASSED_OVER)).items() if times > 1] == []
    assert [name for name in COUNTED if without_memory(name)] == []


@pytest.mark.parametrize("name", COUNTED)
def test_what_memory_depends_on_counts_when_it_is_set(name: str) -> None:
    assert memory_variables({name: ""}) == {}
    assert memory_variables({name: "1"}).keys() == {name}
    assert memory_variables({name: "1"}) != memory_variables({name: "2"})


@pytest.mark.parametrize(
    "name", [*PASSED_OVER, *VARIABLES, "VLLM_ROCM_USE_AITER", "HF_TOKEN", "HOME", "VLLM_SERVICE_HOST"]
)
def test_no_other_counts(name: str) -> None:
    assert memory_variables({name.replace("*", "x"): "1"}, KNOWN) == {}


def test_one_that_vllm_reads_and_no_table_names_counts_by_its_digest() -> None:
    environ = {"VLLM_OF_TOMORROW": "secret"}
    assert memory_variables(environ) == {}
    assert memory_variables(environ, ["VLLM_OF_TOMORROW"]) == {"VLLM_OF_TOMORROW": digest("secret")}
    assert unknown_variables(["VLLM_OF_TOMORROW", "VLLM_USE_V2_MODEL_RUNNER"]) == ["VLLM_OF_TOMORROW"]


@pytest.mark.parametrize("name", OPAQUE)
def test_paths_are_not_written_down(name: str) -> None:
    assert "someone" not in memory_variables({name: "/home/someone/file"})[name]


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        ("/usr/lib/libjemalloc.so.2", "libjemalloc.so.2"),
        ("/a/libjemalloc.so.2:/b/libother.so", "libjemalloc.so.2 libother.so"),
        ("/a/libjemalloc.so.2 /b/libother.so", "libjemalloc.so.2 libother.so"),
        ("/x/vllm/libs/libtcmalloc_minimal.so.4:/y/libjemalloc.so.2", "libjemalloc.so.2"),
    ],
)
def test_preloaded_libraries_count_by_name(value: str, counted: str) -> None:
    assert memory_variables({"LD_PRELOAD": value}) == {"LD_PRELOAD": counted}


def test_what_vllm_preloads_by_itself_does_not_count() -> None:
    """Its CPU backend writes it into the environment, where a second engine of the same process would find it."""
    assert memory_variables({"LD_PRELOAD": "/x/libs/libtcmalloc_minimal.so.4:/x/lib/libgomp-24e2ab19.so.1.0.0"}) == {}


def test_a_number_of_threads_that_vllm_wrote_is_not_the_users() -> None:
    assert memory_variables({"OMP_NUM_THREADS": "8"}) == {"OMP_NUM_THREADS": "8"}
    assert memory_variables({"OMP_NUM_THREADS": "8", "OMP_NUM_THREADS_SET_BY_VLLM": "1"}) == {}


@pytest.mark.parametrize(
    ("name", "version", "kind", "is_read"),
    [
        ("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", (0, 17), "cuda", False),
        ("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", (0, 18), "cuda", True),
        ("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", (0, 32), "cpu", False),
        ("VLLM_USE_V2_MODEL_RUNNER", (0, 11), "cuda", False),
        ("VLLM_USE_V2_MODEL_RUNNER", (0, 12), "cuda", True),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 24), "cuda", False),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 26), "cuda", True),
        ("VLLM_ENABLE_STARTUP_PLAN", (0, 26), "cpu", False),
        ("VLLM_CPU_KVCACHE_SPACE", (0, 12), "cpu", True),
        ("VLLM_CPU_KVCACHE_SPACE", (0, 33), "cuda", False),
        ("CPU_VISIBLE_MEMORY_NODES", (0, 33), "cuda", False),
        ("VLLM_ATTENTION_BACKEND", (0, 33), "cuda", True),
        ("NCCL_BUFFSIZE", (0, 11), "cpu", True),
    ],
)
def test_what_this_vllm_does_not_read_on_these_devices_is_left_out(
    name: str, version: tuple[int, int], kind: str, is_read: bool
) -> None:
    assert as_read({name: "1"}, version, kind) == ({name: "1"} if is_read else {})


def test_the_first_version_that_reads_a_variable_is_no_later_than_was_seen() -> None:
    for name, since in READ_SINCE.items():
        first, minor, _patch = (int(part) for part in KNOWN[name].split()[0].split("."))
        assert since <= (first, minor)
