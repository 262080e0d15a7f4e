"""What experience is worth: five starts of one model in a row, against the best that any utilisation could have given.

    python -m benchmarks.experience starts [--starts 5]      the gap to the oracle, start by start
    python -m benchmarks.experience seconds [--pairs 4]      the second boot against plain vLLM's

The oracle is the largest ``--gpu-memory-utilization`` with which plain vLLM starts and serves the same load, found by
bisection in the same run. A careful user types 0.9, then 0.8, 0.7 and so on. Needs the machine to itself; writes its
tables into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import measured_on, write_block
from dev.architectures import recipes
from dev.neighbour import available_and_total
from dev.server import Server, serving, vllm_command
from dev.tiny_model import byte_tokenizer

MODEL = "real Qwen3-0.6B"
REQUESTS = 12
PROMPT = "What does a model take? " * 8
TOKENS = 16
STEP = 0.002
"""To which the oracle is found: 0.2 % of the machine."""
TYPED = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""What a careful user tries, in order."""
QUIET_BYTES = 64 * 2**20
QUIET_SECONDS = 3.0
"""The machine has settled when its available memory moves by no more than this for so long."""


@dataclass(frozen=True)
class Boot:
    """One start of ``vllm serve``."""

    tokens: int | None
    """Of its KV cache; None where it didn't start, or didn't serve."""
    seconds: float = 0.0
    """Until it answered."""
    line: str = ""
    """What we said."""


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("starts", "seconds"))
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--eager", action="store_true", help="without compiled code, both of them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        command = vllm_command("serve", str(make_model(place / "model")), "--load-format", "dummy")
        command += ["--enforce-eager"] if options.eager else []
        if options.what == "starts":
            starts(command, place, options.starts)
        else:
            seconds(command, place, options.pairs, "eager" if options.eager else "compiled")
    return 0


def make_model(folder: Path) -> Path:
    """A published config of 0.6 billion weights."""
    return write_model(folder, recipes()[MODEL].published)


def write_model(
    folder: Path, config: Mapping[str, Any], tokens: dict[str, str] | None = None, chat_template: str = ""
) -> Path:
    """A folder with a config and a tokenizer that any text can be sent to, for ``--load-format dummy``.

    Args:
        folder: where.
        config: as published; the numbers of special tokens become the tokenizer's.
        tokens: special ones by role (``image_token``).
        chat_template: for chats.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer(int(config["vocab_size"]), tokens)
    if chat_template:
        tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    numbers = {f"{role}_id": tokenizer.convert_tokens_to_ids(token) for role, token in (tokens or {}).items()}
    document = {**config, **numbers, "eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def starts(command: Sequence[str], place: Path, count: int) -> None:
    """The table of KV tokens, start by start."""
    plain = {**os.environ, "VLLM_AUTOFIT": "0"}
    typed, careful = type_carefully(command, place, plain)
    oracle_share, oracle = bisect(command, place, plain, typed)
    ours = {**os.environ, "VLLM_AUTOFIT_CACHE_DIR": str(place / "records")}
    boots = [boot(command, place / f"ours-{number}.log", ours) for number in range(count)]
    more = round(oracle_share + STEP, 4)
    again = {share: _try(command, place, plain, share) for share in (oracle_share, more)}
    best = max(oracle, *(tokens or 0 for tokens in again.values()))
    rows = [
        "| start | KV tokens | of the oracle's | gap |",
        "|---|---:|---:|---:|",
        f"| the oracle: {oracle_share:.4f} | {oracle:,} | | |",
        *(_row(f"plain vLLM afterwards: {share:.4f}", tokens, best) for share, tokens in again.items()),
        _row(f"plain vLLM, as typed: {typed}", careful, best),
        *(_row(f"vllm-autofit, start {number}", each.tokens, best) for number, each in enumerate(boots, 1)),
    ]
    for each in boots:
        print(each.line)
    write_block("experience", [*measured_on("python -m benchmarks.experience starts"), *rows])
    print("\n".join(rows))


def seconds(command: Sequence[str], place: Path, pairs: int, mode: str) -> None:
    """The table of seconds until it answers, in pairs: both have started before, and are given the same KV cache."""
    ours = {**os.environ, "VLLM_AUTOFIT_CACHE_DIR": str(place / "records")}
    first = boot(command, place / "first.log", ours)
    share = _share(first.line)
    plain = {**os.environ, "VLLM_AUTOFIT": "0"}
    fixed = [*command, "--gpu-memory-utilization", share]
    for environ in (ours, plain):  # the first boot of each isn't counted
        boot(fixed, place / "first.log", environ)
    found = []
    for number in range(pairs):
        with_us = boot(fixed, place / f"with-{number}.log", ours)
        without = boot(fixed, place / f"without-{number}.log", plain)
        print(
            f"pair {number + 1}: {with_us.seconds:.2f} s with, {without.seconds:.2f} s without, "
            f"KV tokens {with_us.tokens} and {without.tokens}",
            flush=True,
        )
        found.append((with_us, without))
    ratios = [a.seconds / b.seconds for a, b in found]
    rows = [
        "| pair | with, seconds | without, seconds | ratio | KV tokens with | KV tokens without |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| {number} | {a.seconds:.2f} | {b.seconds:.2f} | {a.seconds / b.seconds:.3f} | {a.tokens} | {b.tokens} |"
            for number, (a, b) in enumerate(found, 1)
        ),
        "",
        f"Median ratio {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}.",
    ]
    write_block(f"second-boot-{mode}", [*measured_on("python -m benchmarks.experience seconds"), *rows])
    print("\n".join(rows))


def boot(command: Sequence[str], log: Path, environ: Mapping[str, str]) -> Boot:
    """One start, under load, and its end."""
    settle()
    began = time.monotonic()
    with serving(command, log, environ) as server:
        if not server.wait():
            return Boot(None)
        took = time.monotonic() - began
        try:
            tokens = server.kv_tokens()
            load(server)
        except OSError:
            return Boot(None)
        line = next(iter(server.lines("vllm-autofit: ", "set ")), "")
        return Boot(tokens, took, line.partition("vllm-autofit: ")[2])


def load(server: Server) -> None:
    """Requests at once, each answered in full."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        for answer in pool.map(lambda number: server.complete(f"{number} {PROMPT}", TOKENS), range(REQUESTS)):
            assert answer["finish_reason"] == "length", answer


def type_carefully(command: Sequence[str], place: Path, environ: Mapping[str, str]) -> tuple[float, int]:
    """The first of ``TYPED`` that starts, and its KV tokens."""
    for share in TYPED:
        tokens = _try(command, place, environ, share)
        if tokens is not None:
            return share, tokens
    raise RuntimeError(f"plain vLLM started with none of {TYPED}")


def bisect(command: Sequence[str], place: Path, environ: Mapping[str, str], works: float) -> tuple[float, int]:
    """The largest utilisation, to ``STEP``, that starts and serves, and its KV tokens."""
    fails, tokens = min(1.0, works + 0.1), 0
    while fails - works > STEP:
        middle = round((works + fails) / 2, 4)
        found = _try(command, place, environ, middle)
        if found is None:
            fails = middle
        else:
            works, tokens = middle, found
    return works, tokens or _try(command, place, environ, works) or 0


def _try(command: Sequence[str], place: Path, environ: Mapping[str, str], share: float) -> int | None:
    tokens = boot([*command, "--gpu-memory-utilization", str(share)], place / "plain.log", environ).tokens
    print(f"plain vLLM with {share}: {'no' if tokens is None else f'{tokens:,} tokens'}", flush=True)
    return tokens


def settle(read: Callable[[], tuple[int, int]] = available_and_total) -> None:
    """Wait until the memory of processes that ended has come back; ``read`` gives bytes available and in total."""
    before, since = read()[0], time.monotonic()
    deadline = since + 60
    while time.monotonic() - since < QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(0.25)
        now = read()[0]
        if abs(now - before) > QUIET_BYTES:
            before, since = now, time.monotonic()


def _share(line: str) -> str:
    return line.partition("gpu_memory_utilization=")[2].partition(",")[0].strip()


def _row(name: str, tokens: int | None, best: int) -> str:
    if tokens is None:
        return f"| {name} | did not start | | |"
    return f"| {name} | {tokens:,} | {100 * tokens / best:.2f} % | {100 - 100 * tokens / best:.2f} % |"


if __name__ == "__main__":
    raise SystemExit(main())
