"""What is kept of an exception, in the process where it was raised."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.hooks import failures
from vllm_autofit.hooks.failures import described, killed, run_behind
from vllm_autofit.units import GIB

RUN: dict[str, Any] = {
    "run_id": "20261121T120000Z-1-aaaa",
    "record": {
        "settings": {"gpu_memory_utilization": {"value": 0.5}},
        "plan": {"budget": {"total_bytes": 80 * GIB}},
    },
}


@pytest.fixture(autouse=True)
def _no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without vLLM; other tests may have loaded it into this one, and it reads this machine."""
    monkeypatch.setattr(failures, "memory_now", lambda: None)


def raised(function: Any, *arguments: Any) -> BaseException:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        function(*arguments)
    return caught.value


def _check_enough_kv_cache_memory(available_memory: int) -> None:
    raise ValueError("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.")


def get_kv_cache_configs(available_memory: list[int]) -> None:
    raise ValueError(
        "To serve at least one request with the model's max seq len (32768), (4.00 GiB KV cache is needed, which is "
        "larger than the available KV cache memory (1.00 GiB). "
    )


def fail(message: str) -> None:
    raise ValueError(message)


def test_how_far_memory_was_short_is_read_where_vllm_found_out() -> None:
    said = described(raised(_check_enough_kv_cache_memory, -2 * GIB), RUN)
    assert (said["phase"], said["is_capacity"], said["resource"]) == ("no_kv_memory", True, "device")
    assert said["numbers"]["consumed_bytes"] == 42 * GIB
    assert said["numbers"]["requested_bytes"] == 40 * GIB


def test_the_tightest_rank_decides() -> None:
    said = described(raised(get_kv_cache_configs, [9 * GIB, GIB]), RUN)
    assert said["numbers"]["consumed_bytes"] == 39 * GIB
    assert said["numbers"]["kv_needed_bytes"] == 4 * GIB


CPU = (
    "Available memory on node 0 ({free:.2f}/23.00 GiB) on kv cache allocation is less than requested memory for kv "
    "({left:.2f}/{asked:.2f} GiB). Reduce CPU memory used by other processes."
)


def test_the_cpu_workers_one_message_means_two_things() -> None:
    less = described(raised(fail, CPU.format(free=3, left=5, asked=8)), RUN)["numbers"]
    assert less["tried_bytes"] == 5 * GIB
    assert less["free_bytes"] == 3 * GIB
    assert "consumed_bytes" not in less
    more = described(raised(fail, CPU.format(free=9, left=-2, asked=1)), RUN)["numbers"]
    assert more["consumed_bytes"] == 3 * GIB
    assert "tried_bytes" not in more


FROM_RAY = (
    "\x1b[36mray::RayWorkerProc.initialize_worker()\x1b[39m (pid=4711, ip={ip}, actor_id=1f, repr=<RayWorkerProc>)\n"
    "ValueError: Free memory on device cuda:0 (10.0/40.0 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 36.0 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)


@pytest.mark.parametrize(("ip", "elsewhere"), [("10.0.0.1", None), ("10.0.0.2", True)])
def test_what_ray_brings_from_another_node_says_nothing_of_this_one(
    ip: str, elsewhere: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1"))
    )
    monkeypatch.setattr(failures, "memory_now", lambda: {"device_index": 0, "free_bytes": 1, "total_bytes": 2})
    said = described(raised(fail, FROM_RAY.format(ip=ip)), RUN)
    assert said["phase"] == "startup_check"
    assert said["numbers"].get("elsewhere") is elsewhere
    assert (said["numbers"]["free_bytes"], said["numbers"]["total_bytes"]) == (10 * GIB, 40 * GIB)
    assert ("device_index" in said["numbers"]) is not elsewhere


def _init_executor(unready_workers: list[Any]) -> None:
    raise RuntimeError("WorkerProc initialization failed due to an exception in a background process.")


def determine_available_memory(executor: Any) -> None:
    def collective_rpc(self: Any) -> None:
        raise RuntimeError("cancelled")

    collective_rpc(executor)


def worker(exitcode: int | None) -> Any:
    return SimpleNamespace(proc=SimpleNamespace(exitcode=exitcode))


def test_a_worker_that_was_killed_is_what_its_executor_failed_for() -> None:
    said = described(raised(_init_executor, [worker(None), worker(-9)]), RUN)
    assert (said["phase"], said["is_capacity"], said["resource"]) == ("weight_load", True, "host")
    said = described(raised(determine_available_memory, SimpleNamespace(workers=[worker(-9)])), RUN)
    assert (said["phase"], said["type"]) == ("profile_run", "killed")
    assert said["cause"].startswith("A process of vLLM's was killed from outside")


def test_so_it_is_while_serving() -> None:
    def run_busy_loop(self: Any) -> None:
        raise RuntimeError("Executor failed.")

    core = SimpleNamespace(model_executor=SimpleNamespace(workers=[worker(-9)]))
    said = described(raised(run_busy_loop, core))
    assert (said["phase"], said["is_capacity"]) == ("runtime", True)


@pytest.mark.parametrize("exitcode", [None, 0, 1, -15])
def test_a_worker_that_ended_otherwise_is_not(exitcode: int | None) -> None:
    said = described(raised(_init_executor, [worker(exitcode)]), RUN)
    assert not said["is_capacity"]
    assert said["message"].startswith("WorkerProc initialization failed")


def test_killed_says_the_same_without_an_exception() -> None:
    assert killed("kv_alloc")["phase"] == "kv_alloc"
    assert killed("kv_alloc")["is_capacity"]


def test_an_error_that_has_nothing_to_do_with_memory_says_so() -> None:
    said = described(raised(fail, "no such tokenizer"), RUN)
    assert not said["is_capacity"]
    assert said["message"] == "no such tokenizer"
    assert run_behind(raised(fail, "no such tokenizer")) is None


UNDER_A_LIMIT = """
import resource, json
from vllm_autofit.hooks.limits import process_limit, room_under_limits
assert process_limit() is None
held = room_under_limits({})["process_bytes"]
limit = 4 * 2**30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
assert process_limit() == limit
print(json.dumps([held, room_under_limits({"free_bytes": 2**40}), room_under_limits({"free_bytes": 5})]))
"""


def test_free_is_what_the_operating_system_lets_this_process_take() -> None:
    done = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT], check=True, capture_output=True, text=True)
    held, limited, less = json.loads(done.stdout)
    assert 0 < held < GIB
    assert 3.9 * GIB < limited["free_bytes"] < 4 * GIB
    assert less["free_bytes"] == 5
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
