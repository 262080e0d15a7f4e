"""Engines of one user that start in the same second on one device: do all of them serve, and does any ask for what
another has?

    python -m benchmarks.together [--rounds 20] [--plain-rounds 5] [--most N] [--only NAME] [--keep FILE]

Each round is kept in a file as soon as it is run, and not run again while it stands there; `--most` runs that many more
and leaves the rest for later. The table goes into docs/benchmarks.md, and says how many rounds are missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.page import measured_on, write_block
from dev.neighbour import GIB, available_and_total
from dev.server import Server, free_port, vllm_command
from dev.tiny_model import make_tiny_model
from vllm_autofit.claims.ledger import Ledger
from vllm_autofit.units import MIB

BLOCK = "together"
COMMAND = "python -m benchmarks.together"
ROUNDS = 20
PLAIN_ROUNDS = 5
"""Of plain vLLM beside it."""
FLAGS = ("--enforce-eager", "--max-model-len", "2048")
SAMPLE_SECONDS = 0.5
START_SECONDS = 200.0
SETTLING = 20
"""Seconds at most."""
SHOWN = 160
"""Characters of last words."""


COLUMNS = (
    "started at once",
    "with",
    "rounds",
    "engines that served",
    "refused before loading",
    "asked in all, of total",
    "asked for more than was free",
    "least left free",
    "KV cache off its plan",
    "came up together",
    "claims left",
    "seconds, median",
    "last words",
)


@dataclass(frozen=True)
class Case:
    """Some engines at once: ours with a share in the environment, plain vLLM with what its users have for that.

    Attributes:
        name: of the case.
        engines: how many start.
        share: of the device, for each; None: as it comes.
    """

    name: str
    engines: int
    share: float | None

    def command(self, model: Path, port: int, ours: bool) -> list[str]:
        """Of one server."""
        words = ["serve", str(model), "--port", str(port), *FLAGS]
        if not ours and self.share is not None:
            words += ["--gpu-memory-utilization", str(self.share)]
        return vllm_command(*words)

    def environ(self, records: Path, ours: bool) -> dict[str, str]:
        """Of each of them."""
        environ = {**os.environ, "VLLM_CPU_CI_ENV": "1", "VLLM_AUTOFIT_CACHE_DIR": str(records)}
        if not ours:
            environ["VLLM_AUTOFIT"] = "0"
        elif self.share is not None:
            environ["VLLM_AUTOFIT_SHARE"] = str(self.share)
        return environ


CASES = (
    Case("two, 0.4 each", 2, 0.4),
    Case("two, as they come (vLLM: 0.92 each)", 2, None),
    Case("four, 0.2 each", 4, 0.2),
)


@dataclass(frozen=True)
class Round:
    """What came of one round. Memory in bytes.

    Attributes:
        case: its name.
        ours: with vllm-autofit.
        number: of the round.
        served: engines that answered a request, all of them up.
        refused: engines that we refused before anything was loaded.
        seconds: until all had served or ended.
        total: of the machine.
        least_free: while they started and served.
        asked: by each engine that came up, its start-up included.
        over_asked: engines that asked for more than they found free when they were planned.
        kv_off: how far each KV cache is from its plan, as a fraction of the plan.
        overlaps: pairs of engines that were coming up at the same time.
        claims_left: once all had ended.
        words: the last ones of those that failed.
    """

    case: str
    ours: bool
    number: int
    served: int
    refused: int
    seconds: float
    total: int
    least_free: int
    asked: list[int]
    over_asked: int
    kv_off: list[float]
    overlaps: int
    claims_left: int
    words: list[str]


class Low:
    """The least that is available while a ``with`` block runs."""

    def __enter__(self) -> Low:
        self.least = available_and_total()[0]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.least = min(self.least, available_and_total()[0])


def run_round(case: Case, ours: bool, number: int, model: Path, folder: Path) -> Round:
    """Start all of a case's engines at once, ask each for a completion when all are up, and stop them."""
    records = folder / "records"
    _settle()
    environ = case.environ(records, ours)
    began = time.monotonic()
    with Low() as low:
        servers = []
        for index in range(case.engines):
            port = free_port()
            servers.append(Server(case.command(model, port, ours), port, folder / f"log{index}", environ))
        try:
            up = _come_up(servers, began)
            seconds = time.monotonic() - began
            served = sum(server in up and _answers(server) for server in servers)
        finally:
            for server in servers:
                server.stop()
    starts = [json.loads(path.read_text()) for path in records.glob("starts/*/*.json")]
    starts = [start for start in starts if start["engines"]]
    failed = [server for server in servers if server not in up]
    return Round(
        case.name,
        ours,
        number,
        served,
        sum("RefusedError" in server.text() for server in failed),
        round(seconds, 1),
        available_and_total()[1],
        low.least,
        [_asked(start) for start in starts],
        sum(_asked(start) > start["plan"]["budget"]["free_bytes"] for start in starts),
        [round(_kv_off(start), 4) for start in starts],
        _overlaps(starts),
        len(Ledger(records).claims()),
        [_last_words(server) for server in failed],
    )


def _settle() -> None:
    """Wait for what engines before held: the system gives it back after they have ended."""
    for _ in range(SETTLING):
        before = available_and_total()[0]
        time.sleep(1.0)
        if available_and_total()[0] - before < 64 * MIB:
            return


def _come_up(servers: Sequence[Server], began: float) -> list[Server]:
    """Those that serve, once each does or has ended, or it takes too long."""
    up: list[Server] = []
    waiting = list(servers)
    while waiting and time.monotonic() - began < START_SECONDS:
        up += [server for server in waiting if server.wait(SAMPLE_SECONDS)]
        waiting = [server for server in waiting if server not in up and server.process.poll() is None]
    return up


def _answers(server: Server) -> bool:
    try:
        return bool(server.complete("Hello")["text"])
    except OSError:
        return False


def _asked(start: dict[str, Any]) -> int:
    budget = start["plan"]["budget"]
    ranks = [rank for engine in start["engines"] for rank in engine["ranks"]]
    return int(budget["startup_overhead_bytes"] + sum(rank["requested_bytes"] for rank in ranks))


def _kv_off(start: dict[str, Any]) -> float:
    planned = start["plan"]["budget"]["kv_cache_bytes"]
    return float(start["engines"][0]["kv_cache"]["pool_bytes"] / planned - 1)


def _overlaps(starts: Sequence[dict[str, Any]]) -> int:
    """Pairs that were planned, or came up, while another did: by the records' times, to two seconds."""
    spans = sorted(
        (began, began + start["engines"][0]["seconds"]["since_plan"])
        for start in starts
        if (began := datetime.fromisoformat(start["started_at"]).timestamp())
    )
    return sum(later < end - 2.0 for (_, end), (later, _) in itertools.pairwise(spans))


def _last_words(server: Server) -> str:
    ours = [line for line in server.lines("vllm-autofit:") if " INFO " not in line]
    errors = [line for line in server.text().splitlines() if re.search(r"\w(Error|Exception): ", line)]
    line = (ours or errors or [""])[-1]
    return line.rpartition("] ")[2].strip()[:SHOWN]


def main() -> int:
    """Run the rounds, as far as they aren't kept, and write their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--plain-rounds", type=int, default=PLAIN_ROUNDS)
    parser.add_argument("--most", type=int, default=sys.maxsize, help="rounds to run now")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--keep", type=Path, default=Path("together.jsonl"), help="where rounds are kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server outlives a round that is cut off
    kept = (
        [Round(**json.loads(line)) for line in options.keep.read_text().splitlines()] if options.keep.exists() else []
    )
    done = {(each.case, each.ours, each.number) for each in kept}
    rounds = {True: options.rounds, False: options.plain_rounds}
    wanted = [
        (case, ours, number)
        for number in range(max(rounds.values()))
        for case in CASES
        for ours in rounds
        if number < rounds[ours]
    ]
    missing = [each for each in wanted if (each[0].name, *each[1:]) not in done and options.only in each[0].name]
    with tempfile.TemporaryDirectory() as place:
        model = make_tiny_model(Path(place) / "model")
        for case, ours, number in missing[: options.most]:
            folder = Path(place) / f"{case.engines}-{case.share}-{ours}-{number}"
            kept.append(run_round(case, ours, number, model, folder))
            print(kept[-1], file=sys.stderr, flush=True)
            with options.keep.open("a") as file:
                file.write(json.dumps(asdict(kept[-1])) + "\n")
    left = len(wanted) - len({(each.case, each.ours, each.number) for each in kept})
    units = "Memory in GiB." + (f" {left} of {len(wanted)} rounds weren't run." if left else "")
    lines = [*measured_on(COMMAND, units), *table(kept)]
    if options.only:
        print("\n".join(lines))
    else:
        write_block(BLOCK, lines)
    return 0


def table(rounds: Sequence[Round]) -> Iterator[str]:
    """One line for each case, with us and without."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for case in CASES:
        for ours in (True, False):
            found = [each for each in rounds if (each.case, each.ours) == (case.name, ours)]
            if found:
                yield _line(case, ours, found)


def _line(case: Case, ours: bool, rounds: Sequence[Round]) -> str:
    asked = [sum(each.asked) / each.total for each in rounds if each.asked]
    off = [each for one in rounds for each in one.kv_off]
    words = Counter(word for each in rounds for word in each.words).most_common(1)
    cells = [
        case.name,
        "vllm-autofit" if ours else "plain vLLM",
        len(rounds),
        f"{sum(each.served for each in rounds)} of {case.engines * len(rounds)}",
        sum(each.refused for each in rounds),
        f"{max(asked):.0%}" if asked else "",
        sum(each.over_asked for each in rounds) if ours else "",
        f"{min(each.least_free for each in rounds) / GIB:.2f}",
        f"{min(off):+.1%} to {max(off):+.1%}" if off else "",
        sum(each.overlaps for each in rounds) if ours else "",
        sum(each.claims_left for each in rounds) if ours else "",
        f"{median(each.seconds for each in rounds):.0f}",
        words[0][0].replace("|", "\\|") if words else "",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
