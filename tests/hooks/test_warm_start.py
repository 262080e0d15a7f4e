"""Starting without measuring: when it is done, what vLLM is given for it, and that nothing of it stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import GIB, host, request
from vllm_autofit.hooks import warm_start
from vllm_autofit.hooks.runs import ATTRIBUTE
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import AUTO_CONTEXT, Lessons, Measured, Request, Rules, RunSettings

SETTINGS: dict[str, Any] = {
    "max_num_seqs": 128,
    "max_num_batched_tokens": 2048,
    "kv_cache_dtype": "auto",
    "enforce_eager": False,
}
LESSON = {"consumed_bytes": 3 * GIB, "record": "earlier", "settings": SETTINGS}
KNOWN = Lessons(skip_profiling=Measured(3 * GIB, "earlier", settings=RunSettings(4096, **SETTINGS)))


def worker(
    lesson: dict[str, Any] | None = LESSON, *, ranges: int = 1, ranks: int = 1, device: str = "cpu", **cache: Any
) -> Any:
    """What vLLM's CPU worker has of all this once it has loaded the weights: 20 GiB were asked for."""
    compilation = SimpleNamespace(compile_sizes=[], get_compile_ranges=lambda: [object()] * ranges)
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=128, max_num_batched_tokens=2048),
        cache_config=SimpleNamespace(cache_dtype="auto", kv_cache_memory_bytes=None, **cache),
        model_config=SimpleNamespace(enforce_eager=False, multimodal_config=SimpleNamespace(skip_mm_profiling=False)),
        compilation_config=compilation,
        parallel_config=SimpleNamespace(world_size=ranks, data_parallel_size=1),
    )
    setattr(config, ATTRIBUTE, {"run_id": "now", "skip_profiling": lesson})
    return SimpleNamespace(
        vllm_config=config,
        cache_config=config.cache_config,
        model_runner=SimpleNamespace(max_num_tokens=2048),
        device=SimpleNamespace(type=device),
        requested_cpu_memory=20 * GIB,
    )


def started(instance: Any, *, refuses: bool = False) -> list[tuple[Any, Any, Any]]:
    """What vLLM's function saw each time it was called: KV bytes, batch of the warm-up, encoders left out."""
    seen = []

    def measure() -> int:
        given = instance.cache_config.kv_cache_memory_bytes
        multimodal = instance.vllm_config.model_config.multimodal_config
        seen.append((given, instance.model_runner.max_num_tokens, multimodal.skip_mm_profiling))
        if refuses and given is not None:
            raise ValueError("less than requested memory for kv")
        return given or GIB

    assert warm_start.determine_available_memory(measure, instance, (), {}) == (seen[-1][0] or GIB)
    return seen


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "memory_now", lambda: {"free_bytes": 18 * GIB})


@pytest.mark.parametrize("context", [4096, None, AUTO_CONTEXT])
def test_what_workers_are_told_of_an_earlier_start(context: int | None) -> None:
    asked = request() if context is None else request({"max_model_len": context})
    plan = make_plan(asked, [host(free_gib=30)], Lessons(), Rules(), context_automatic=True)
    assert warm_start.skipping(KNOWN, plan, asked) == LESSON


@pytest.mark.parametrize(
    ("lessons", "asked"),
    [
        (Lessons(), request()),
        (Lessons(skip_profiling=Measured(3 * GIB, "earlier")), request()),
        (KNOWN, request({"max_model_len": 2048})),
        (KNOWN, request(kv_cache_fixed_by="--kv-cache-memory-bytes")),
        (KNOWN, request(planned_in_parts=True)),
    ],
    ids=["nothing known", "with which settings isn't known", "another context", "a fixed cache", "other parts"],
)
def test_else_they_measure(lessons: Lessons, asked: Request) -> None:
    assert warm_start.skipping(lessons, make_plan(asked, [host(free_gib=30)], Lessons(), Rules()), asked) is None


MEASURED = [(None, 2048, False)]


def test_what_is_known_is_given_and_what_only_measures_is_short_or_left_out() -> None:
    instance = worker()
    assert started(instance) == [(17 * GIB, warm_start.WARM_UP_TOKENS, True)]
    assert getattr(instance, warm_start.SKIPPED)


def test_nothing_of_it_stays() -> None:
    instance = worker()
    started(instance)
    assert instance.cache_config.kv_cache_memory_bytes is None
    assert instance.model_runner.max_num_tokens == 2048
    assert not instance.vllm_config.model_config.multimodal_config.skip_mm_profiling


def test_several_graphs_are_all_warmed_up() -> None:
    assert started(worker(ranges=2)) == [(17 * GIB, 2048, True)]


def test_ranks_on_a_host_measure_together_as_ever() -> None:
    """One that vLLM refuses would be alone with the measuring, and wait for the others for ever."""
    assert started(worker(ranks=2)) == MEASURED


@pytest.mark.parametrize("consumed", [3 * GIB, 25 * GIB], ids=["fits", "does not fit"])
def test_ranks_on_devices_never_differ_in_whether_they_measure(consumed: int) -> None:
    lesson = {**LESSON, "consumed_bytes": consumed}
    assert started(worker(lesson, ranks=2, device="cuda")) == [(max(20 * GIB - consumed, 1), 2048, True)]


def test_if_vllm_finds_that_the_memory_is_not_there_it_measures_at_once() -> None:
    instance = worker()
    assert started(instance, refuses=True) == [(17 * GIB, warm_start.WARM_UP_TOKENS, True), *MEASURED]
    assert not getattr(instance, warm_start.SKIPPED)


@pytest.mark.parametrize(
    "lesson",
    [
        None,
        {**LESSON, "settings": {**SETTINGS, "max_num_seqs": 64}},
        {**LESSON, "settings": {**SETTINGS, "kv_cache_dtype": "fp8"}},
        {**LESSON, "consumed_bytes": 20 * GIB},
        {**LESSON, "consumed_bytes": GIB},
        {"record": "earlier"},
    ],
    ids=["unknown", "fewer sequences", "another dtype", "all consumed", "more than is free", "damaged"],
)
def test_otherwise_vllm_measures(lesson: dict[str, Any] | None) -> None:
    assert started(worker(lesson)) == MEASURED


def test_a_size_of_the_users_stands() -> None:
    instance = worker()
    instance.cache_config.kv_cache_memory_bytes = GIB
    assert started(instance) == [(GIB, 2048, False)]


def test_a_reserve_for_images_that_vllm_takes_off_is_left_to_it() -> None:
    instance = worker()
    instance.vllm_config.model_config.multimodal_config.mm_ipc_gpu_memory_gb = 1.0
    assert started(instance) == MEASURED


def test_another_exception_is_not_an_answer_to_it() -> None:
    def fails() -> int:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        warm_start.determine_available_memory(fails, worker(), (), {})
