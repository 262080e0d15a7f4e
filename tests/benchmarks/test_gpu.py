"""The proof on a GPU, but for the GPU: what is run, in which order, within which time, and how it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import table
from benchmarks.gpu.cells import Cell, fixed_cells, next_share, oracle, oracle_cell
from benchmarks.gpu.ledger import BusyError, Ledger, OtherMachineError
from benchmarks.gpu.load import Excess
from benchmarks.gpu.models import entries, tiny
from benchmarks.gpu.runs import SIZES, Bench
from benchmarks.gpu.slices import LIMIT_SECONDS, TimeUpError, expected_seconds, time_limit
from tests.benchmarks.gpu_machine import MACHINE
from vllm_autofit.units import GIB

# Cells


def test_every_model_starts_five_times_and_the_first_gets_into_trouble() -> None:
    cells = list(fixed_cells(["small", "large"]))
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.name for cell in cells if cell.model == "large"] == [
        f"large/start-{start}" for start in ("plain-1", "ours-1", "ours-2", "ours-3", "plain-2")
    ]
    assert {cell.scenario for cell in cells if cell.model == "small"} == {*table.TROUBLED, "start"}


@pytest.mark.parametrize("best", [0.3, 0.41, 0.905, 0.95, 0.9985])
def test_the_oracle_is_found_to_the_step(best: float) -> None:
    tries: dict[float, bool] = {}
    while (share := next_share(tries, 0.002)) is not None:
        assert share not in tries
        tries[share] = share <= best
    found = max((share for share, well in tries.items() if well), default=None)
    if best < 0.4:
        assert found is None  # lower than anybody types
    else:
        assert found is not None
        assert 0 <= best - found <= 0.002
    assert len(tries) < 15


def test_the_oracles_tries_are_cells_of_their_own() -> None:
    documents = {
        name: {"cell": name, "model": "m", "scenario": "oracle", "share": share, "survived": well}
        for name, share, well in (("a", 0.9, True), ("b", 0.95, False), ("c", 0.925, True))
    }
    cell = oracle_cell("m", documents, 0.002)
    assert cell is not None
    assert cell.name == "m/oracle-0.9375"
    best = oracle("m", documents)
    assert best is not None
    assert best["share"] == 0.925
    assert oracle("another", documents) is None


# Time


def test_a_limit_ends_whatever_hangs() -> None:
    with pytest.raises(TimeUpError), time_limit(0.05):
        time.sleep(30)
    with time_limit(0.05):
        pass
    time.sleep(0.1)  # the bell of a block that has ended doesn't ring


def test_a_cell_is_expected_to_take_as_long_as_its_own_attempts_or_one_like_it() -> None:
    cell = Cell("m", "start", "ours", 3)
    assert expected_seconds(cell, {}, 0) == 150
    documents = {
        "a": {"model": "m", "scenario": "start", "who": "ours", "number": 2, "seconds": 40.0},
        "c": {"model": "m", "scenario": "start", "who": "ours", "number": 1, "seconds": 100.0},
        "b": {"model": "m", "scenario": "start", "who": "plain", "number": 1, "seconds": 80.0},
    }
    assert expected_seconds(cell, documents, 0) == 50
    assert expected_seconds(cell, documents, 200) == 250
    assert expected_seconds(cell, documents, 4000) == LIMIT_SECONDS
    assert expected_seconds(Cell("n", "start", "ours"), documents, 0) == 150
    assert expected_seconds(Cell("m", "start", "plain", 2), documents, 0) == 100
    assert expected_seconds(Cell("m", "refused", "ours"), documents, 0) == 50
    assert expected_seconds(Cell("m", "two", "ours"), documents, 0) == 240


def test_a_load_past_what_fits_asks_for_more_than_the_cache_holds() -> None:
    excess = Excess(1.5, 512, 32_768, 2_000_000, 128, seconds=90)
    load = excess.load(100_000, 40_960)
    assert load.requests * (load.input_tokens + load.output_tokens) >= 150_000
    assert load.input_tokens == 32_768
    short = excess.load(100_000, 2048)
    assert short.input_tokens + short.output_tokens < 2048
    assert excess.load(10**8, 40_960).requests * 32_768 <= 2_100_000


# The ledger


def test_results_are_bound_to_a_machine(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.bind(MACHINE)
    ledger.bind({**MACHINE, "driver": "580"})
    assert ledger.machine()["driver"] == "575"
    with pytest.raises(OtherMachineError, match=r"vllm 0\.32\.0, not 0\.33\.0"):
        ledger.bind({**MACHINE, "vllm": "0.33.0"})


def test_what_a_killed_run_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, others = (subprocess.Popen(sleep, start_new_session=True) for _ in range(2))
    try:
        ledger.started(ours.pid)
        assert Ledger(tmp_path).end_leftovers() == 1
        assert ours.wait(10) != 0
        assert others.poll() is None
        assert ledger.end_leftovers() == 0
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_a_session_number_that_somebody_else_has_now_is_left_alone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        (tmp_path / "running").write_text(f"{process.pid} {time.time() + 3600}\n")
        assert Ledger(tmp_path).end_leftovers() == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


# The loop, around cells that only pretend


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    ledger = Ledger(tmp_path)
    ledger.bind({**MACHINE, "kind": "cpu"})
    return Bench(ledger, "cpu", SIZES["cpu"], {"tiny": tiny()})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Cell, dict[str, Any]], None]], list[str]]:
    """Put a pretended run in the place of real servers; gives the names of the cells that were run."""

    def pretend(behave: Callable[[Cell, dict[str, Any]], None]) -> list[str]:
        names: list[str] = []

        def run(bench: Bench, cell: Cell, document: dict[str, Any]) -> None:
            names.append(cell.name)
            behave(cell, document)

        monkeypatch.setattr(command, "run", run)
        return names

    return pretend


def _serve(cell: Cell, document: dict[str, Any]) -> None:
    document["outcome"] = "served"


def test_what_is_done_is_not_run_again(bench: Bench, ran: Any, tmp_path: Path) -> None:
    names = ran(_serve)
    assert command.measure(bench, ["start"], 1000) == command.DONE
    assert len(names) == 5
    assert command.measure(bench, ["start"], 1000) == command.DONE
    assert len(names) == 5
    left = table.left_before(tmp_path)
    assert "tiny/two-ours-1" in left
    assert not [name for name in left if "start" in name]


def test_two_runs_do_not_measure_into_one_folder(tmp_path: Path) -> None:
    with Ledger(tmp_path).alone(), pytest.raises(BusyError), Ledger(tmp_path).alone():
        pass
    with Ledger(tmp_path).alone():
        pass


def test_an_interrupted_run_goes_on_with_the_cell_it_was_at(bench: Bench, ran: Any) -> None:
    def interrupted(cell: Cell, document: dict[str, Any]) -> None:
        if cell.name == "tiny/start-ours-1":
            raise KeyboardInterrupt
        document["outcome"] = "served"

    ran(interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.measure(bench, ["start"], 1000)
    names = ran(_serve)
    assert command.measure(bench, ["start"], 1000) == command.DONE
    assert names == [f"tiny/start-{each}" for each in ("ours-1", "ours-2", "ours-3", "plain-2")]


def test_no_cell_begins_that_can_not_end_in_time(bench: Bench, ran: Any) -> None:
    names = ran(_serve)
    assert command.measure(bench, ["start"], 100) == command.MORE
    assert names == []
    assert command.measure(bench, ["refused"], 100) == command.DONE  # expected to take a minute


def test_a_cell_that_the_end_of_its_slice_cuts_is_run_again(
    bench: Bench, ran: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "expected_seconds", lambda *_: 0.0)
    monkeypatch.setattr(command, "WHOLE_SECONDS", 0.0)
    names = ran(lambda cell, document: time.sleep(30))
    assert command.measure(bench, ["ours-1"], 0.3) == command.MORE
    assert bench.ledger.done("tiny/start-ours-1") == {}
    monkeypatch.setattr(command, "WHOLE_SECONDS", 5.0)
    names.clear()
    command.measure(bench, ["start-plain-1"], 0.3)
    kept = bench.ledger.done("tiny/start-plain-1")  # it had the slice to itself
    assert (kept["outcome"], kept["survived"]) == ("time ran out", False)


def test_a_cell_that_breaks_is_noted_and_the_run_goes_on(bench: Bench, ran: Any) -> None:
    def broken(cell: Cell, document: dict[str, Any]) -> None:
        if cell.number == 1 and cell.who == "plain":
            raise RuntimeError("the co-tenant could not get ready")
        _serve(cell, document)

    ran(broken)
    assert command.measure(bench, ["start"], 1000) == command.DONE
    kept = bench.ledger.done("tiny/start-plain-1")
    assert kept["outcome"] == "broke"
    assert kept["failure"]["error"] == "RuntimeError: the co-tenant could not get ready"
    names = ran(_serve)
    assert command.measure(bench, ["start"], 1000, again=True) == command.DONE
    assert names == ["tiny/start-plain-1"]


def test_a_second_start_makes_no_sense_where_the_first_did_not_serve(bench: Bench, ran: Any) -> None:
    def refused(cell: Cell, document: dict[str, Any]) -> None:
        document["outcome"] = "did not start" if cell.who == "ours" else "served"

    names = ran(refused)
    assert command.measure(bench, ["start"], 1000) == command.DONE
    assert names == [f"tiny/start-{each}" for each in ("plain-1", "ours-1", "plain-2")]
    assert bench.ledger.done("tiny/start-ours-3")["skipped"] == "start 2 was skipped"


def test_a_model_too_large_is_skipped(ran: Any, tmp_path: Path) -> None:
    names = ran(_serve)
    ledger = Ledger(tmp_path / "small")
    ledger.bind({**MACHINE, "total_bytes": 24 * GIB})
    large = Bench(ledger, "cpu", SIZES["cpu"], {"qwen3-32b": entries()["qwen3-32b"]})
    assert command.measure(large, ["start"], 1000) == command.DONE
    assert names == []
    page = "\n".join(table.page(table.collected(ledger, [])))
    assert "| qwen3-32b | 61.0 GiB of weights; this device has 24.0 GiB |" in page


# What a start finds


def test_a_start_finds_the_records_of_the_one_before_and_nothing_of_an_attempt_that_was_cut(bench: Bench) -> None:
    first, second = (Cell("tiny", "start", "ours", number) for number in (1, 2))
    for cell, name in ((first, "first.json"), (second, "cut.json")):
        bench.records(cell).mkdir(parents=True)
        (bench.records(cell) / name).touch()
    bench.prepare(second)
    assert [path.name for path in bench.records(second).iterdir()] == ["first.json"]
    bench.prepare(first)
    assert not bench.records(first).exists()


def test_the_first_start_of_each_side_compiles_and_no_other(bench: Bench) -> None:
    caches = {who: Path(bench.environ(Cell("tiny", "start", who))["VLLM_CACHE_ROOT"]) for who in ("plain", "ours")}
    assert caches["plain"] != caches["ours"]
    for cache in caches.values():
        cache.mkdir(parents=True)
    for cell in (
        Cell("tiny", "start", "ours", 2),
        Cell("tiny", "two", "ours"),
        Cell("tiny", "oracle", "plain", share=0.9),
    ):
        bench.prepare(cell)
        assert Path(bench.environ(cell)["VLLM_CACHE_ROOT"]).is_dir()
    bench.prepare(Cell("tiny", "start", "ours"))
    assert [who for who, cache in caches.items() if cache.exists()] == ["plain"]


def test_plain_vllm_is_plain(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT", "observe")
    assert bench.environ(Cell("tiny", "start", "plain"))["VLLM_AUTOFIT"] == "0"
    assert bench.environ(Cell("tiny", "start", "ours"))["VLLM_AUTOFIT"] == "1"


# With real servers


@pytest.mark.vllm
@pytest.mark.e2e
@pytest.mark.full
def test_the_whole_command_on_a_cpu(tmp_path: Path) -> None:
    """A start that is refused is a result like any other, and done for good."""
    arguments = ["-m", "benchmarks.gpu", "--device", "cpu", "--out", str(tmp_path), "--only", "refused-ours"]
    assert subprocess.run([sys.executable, *arguments], check=False).returncode == command.DONE
    document = json.loads((tmp_path / "results.json").read_text())["cells"]["tiny/refused-ours-1"]
    assert document["outcome"] == "did not start"
    assert document["failure"]["phase"] == "startup_check"
    assert document["said"]
    assert "| the user typed more than is free beside a co-tenant | ours |" in (tmp_path / "results.md").read_text()
    again = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert (again.returncode, "begins" in again.stdout) == (command.DONE, False)
