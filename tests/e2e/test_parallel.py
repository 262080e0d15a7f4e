"""Several ranks, engines, API servers and nodes: one plan, one record with every rank, and the next start from it.

On vLLM's CPU backend all ranks of a host share its memory: what they ask for together must be free.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dev.neighbour import GIB, available_and_total
from dev.server import free_port, serving, vllm_command
from tests.conftest import SMALL_START_GIB
from tests.e2e.conftest import our_lines, records, run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.e2e,
    pytest.mark.full,
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks on CPU need two cores"),
]

EAGER = ("--enforce-eager", "--max-model-len", "512")
COMPILED = ("--max-model-len", "512")
"""vLLM 0.32's CPU backend can't serve with pipeline stages and ``--enforce-eager``: it leaves out the warm-up, in which
a stage makes the buffer for what the stage before sends."""

LAUNCHES: dict[str, tuple[Sequence[str], dict[int, list[int]]]] = {
    "tensor": ((*EAGER, "--tensor-parallel-size", "2"), {0: [0, 1]}),
    "pipeline": ((*COMPILED, "--pipeline-parallel-size", "2"), {0: [0, 1]}),
    "data": ((*EAGER, "--data-parallel-size", "2"), {0: [0], 1: [0]}),
    "tensor, experts": ((*EAGER, "--tensor-parallel-size", "2", "--enable-expert-parallel"), {0: [0, 1]}),
    "API servers": ((*EAGER, "--api-server-count", "2"), {0: [0]}),
}
"""Arguments, and the ranks of each engine."""


@pytest.fixture
def environ(serve_environ: dict[str, str]) -> dict[str, str]:
    """Of commands that may ask for ``SMALL_START_GIB`` for each of two workers, and start two."""
    spare = max(0.5, available_and_total()[0] / GIB - 2 * (SMALL_START_GIB + 1))
    return {**serve_environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_AUTOFIT_HEADROOM": f"{spare:.1f}GiB"}


@pytest.mark.parametrize("kind", LAUNCHES)
def test_one_record_with_every_rank_and_the_next_start_from_it(
    kind: str, tiny_model: Path, tiny_mixture: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    arguments, engines = LAUNCHES[kind]
    model = tiny_mixture if "experts" in kind else tiny_model
    command = vllm_command("serve", str(model), *arguments)
    first = served(command, environ, tmp_path / "1.log")
    second = served(command, environ, tmp_path / "2.log")
    assert second["plan"]["record"] == first["run_id"]
    assert len(records(environ)) == 2
    for record in (first, second):
        assert ranks_of(record) == engines
        shares_are_free(record)


def test_a_ray_with_real_actors(tiny_model: Path, environ: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray isn't part of the environment: pip install ray")
    command = vllm_command(
        "serve", str(tiny_model), *EAGER, "--tensor-parallel-size", "2", "--distributed-executor-backend", "ray"
    )
    with ray_on_cpu(environ, tmp_path) as connected:
        first = served(command, connected, tmp_path / "1.log")
        second = served(command, connected, tmp_path / "2.log")
    assert second["plan"]["record"] == first["run_id"]
    assert len(records(environ)) == 2
    for record in (first, second):
        assert ranks_of(record) == {0: [0, 1]}
        shares_are_free(record)


def test_a_node_that_only_runs_workers_keeps_a_record_of_its_own(
    tiny_model: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """Two nodes, as far as their names and folders tell: ranks of the other are never taken for this machine's."""
    head = {**environ, "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    other = {**head, "VLLM_AUTOFIT_CACHE_DIR": str(tmp_path / "records of the other")}
    for number in (1, 2):
        address = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
        command = vllm_command("serve", str(tiny_model), *EAGER, "--tensor-parallel-size", "2", *address)
        with elsewhere([*command, "--node-rank", "1", "--headless"], other, tmp_path / f"other {number}.log"):
            record = served([*command, "--node-rank", "0"], head, tmp_path / f"{number}.log")
        here, there = record["engines"][0]["ranks"]
        assert "node" not in here
        assert there["node"]
        assert there["before"]["free_bytes"] > 0
        assert record["plan"]["budget"]["ranks"] == 1

    first, second = records(other)
    assert second["plan"]["record"] == first["run_id"]
    for record in (first, second):
        assert ranks_of(record) == {0: [1]}
        assert record["outcome"]["ended"]["how"] == "clean"


def test_engines_on_another_node_are_planned_and_recorded_there(
    tiny_model: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    other = {**environ, "VLLM_AUTOFIT_CACHE_DIR": str(tmp_path / "records of the other")}
    address = ("--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port()))
    command = vllm_command("serve", str(tiny_model), *EAGER, "--data-parallel-size", "2", *address)
    command += ["--data-parallel-size-local", "1"]
    with elsewhere([*command, "--headless", "--data-parallel-start-rank", "1"], other, tmp_path / "other.log"):
        record = served([*command, "--api-server-count", "1"], environ, tmp_path / "log")
    assert ranks_of(record) == {0: [0]}
    assert [ranks_of(each) for each in records(other)] == [{1: [0]}]


def test_engines_that_are_started_one_by_one_leave_room_for_each_other(
    tiny_mixture: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    """They come up, and no more: vLLM 0.32's CPU backend has no ``all_gatherv``, with which experts of data-parallel
    engines serve, and other models can't be started like this."""
    address = ("--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(free_port()))
    command = vllm_command("serve", str(tiny_mixture), *EAGER, "--data-parallel-size", "2", *address)
    with (
        serving([*command, "--data-parallel-rank", "0"], tmp_path / "0.log", environ) as first,
        serving([*command, "--data-parallel-rank", "1"], tmp_path / "1.log", environ) as second,
    ):
        for server in (first, second):
            assert server.wait(), server.text()[-3000:]
    one, two = records(environ)
    assert one["key"] == two["key"]
    assert sorted(rank for record in (one, two) for rank in ranks_of(record)) == [0, 1]
    asked = sum(record["engines"][0]["ranks"][0]["requested_bytes"] for record in (one, two))
    assert asked < min(record["plan"]["budget"]["free_bytes"] for record in (one, two))


TORCHRUN = """
import sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(
        sys.argv[1],
        tensor_parallel_size=2,
        distributed_executor_backend="external_launcher",
        enforce_eager=True,
        max_model_len=512,
    )
    out = llm.generate(["Hello"] * 10, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    print("TOKENS", sum(len(each.outputs[0].token_ids) for each in out))
"""


def test_ranks_of_torchrun_plan_alike_before_any_takes_memory(
    tiny_model: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(TORCHRUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    done = run([*launcher, str(free_port()), str(script), str(tiny_model)], {**environ, "GLOO_SOCKET_IFNAME": "lo"})
    assert done.stdout.count("TOKENS 40") == 2, done.stdout[-3000:]
    one, two = records(environ)
    assert one["key"] == two["key"]
    assert sorted([*ranks_of(one)[0], *ranks_of(two)[0]]) == [0, 1]
    asked = sum(record["engines"][0]["ranks"][0]["requested_bytes"] for record in (one, two))
    assert asked < min(record["plan"]["budget"]["free_bytes"] for record in (one, two))
    assert one["engines"][0]["kv_cache"]["blocks"] == two["engines"][0]["kv_cache"]["blocks"]
    for record in (one, two):
        assert record["plan"]["budget"]["ranks"] == 2
        assert record["settings"]["max_num_seqs"]["chosen_by"] == "vllm", "all ranks must agree on it"


def served(command: Sequence[str], environ: Mapping[str, str], log: Path) -> dict[str, Any]:
    """The record of a start that answered."""
    with serving(command, log, environ) as server:
        assert server.wait(), server.text()[-3000:]
        assert server.complete("Hello")["text"]
    said = [line for line in our_lines(server.text()) if "vllm-autofit: set " in line]
    assert len(said) == 1, our_lines(server.text())
    record = records(environ)[-1]
    assert record["run_id"] in said[0]
    assert record["outcome"]["ended"]["how"] == "clean"
    return record


def ranks_of(record: Mapping[str, Any]) -> dict[int, list[int]]:
    """The ranks of each engine that say what they hold."""
    return {
        engine["dp_rank"]: [
            rank["rank"] for rank in engine["ranks"] if rank["weights_bytes"] and rank["kv_cache_bytes"]
        ]
        for engine in record["engines"]
    }


def shares_are_free(record: Mapping[str, Any]) -> None:
    """What all ranks ask for together was free, beside what a start takes before, and each saw its device."""
    budget = record["plan"]["budget"]
    ranks = [rank for engine in record["engines"] for rank in engine["ranks"]]
    assert budget["ranks"] == len(ranks)
    assert sum(rank["requested_bytes"] for rank in ranks) < budget["free_bytes"]
    assert all(rank["before"]["free_bytes"] > rank["requested_bytes"] for rank in ranks)


@contextlib.contextmanager
def elsewhere(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """A command on a host of another name, for the length of a ``with`` block."""
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*renamed, "true"], check=False).returncode:
        pytest.skip("no host name of its own can be had here")
    with background([*renamed, *command], environ, log):
        yield


@contextlib.contextmanager
def background(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """A command in a process group of its own, interrupted at the end, as Ctrl-C would."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        for signal_, seconds in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal_)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


PLATFORM = """
from vllm.platforms.cpu import CpuPlatform

class RayCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"
"""
"""vLLM's own CPU platform doesn't say which of Ray's resources its workers take, and so can't be used with Ray."""


@contextlib.contextmanager
def ray_on_cpu(environ: Mapping[str, str], folder: Path) -> Iterator[dict[str, str]]:
    """A Ray of one node with two GPUs that are none, and the environment in which vLLM's CPU backend uses it."""
    plugin = folder / "plugin"
    (plugin / "ray_on_cpu-1.dist-info").mkdir(parents=True)
    (plugin / "ray_on_cpu_platform.py").write_text(PLATFORM)
    (plugin / "ray_on_cpu.py").write_text('def platform():\n    return "ray_on_cpu_platform.RayCpuPlatform"\n')
    (plugin / "ray_on_cpu-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ray-on-cpu\nVersion: 1\n")
    entry = "[vllm.platform_plugins]\nray_on_cpu = ray_on_cpu:platform\n"
    (plugin / "ray_on_cpu-1.dist-info" / "entry_points.txt").write_text(entry)
    port = free_port()
    connected = {
        **environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(plugin), environ.get("PYTHONPATH")))),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", ""))),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    log = folder / "ray.log"
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as sockets:  # their paths must be short
        start = f"start --head --block --port {port} --num-gpus 2 --num-cpus 4 --include-dashboard false"
        start += f" --object-store-memory {10**8} --temp-dir {sockets}"
        with background([sys.executable, "-m", "ray.scripts.scripts", *start.split()], connected, log):
            deadline = time.monotonic() + 60
            while "Ray runtime started" not in log.read_text(errors="replace"):
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.5)
            yield {**connected, "RAY_ADDRESS": f"127.0.0.1:{port}"}
