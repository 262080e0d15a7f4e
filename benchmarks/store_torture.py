"""What the record store must survive: many writers at once, writers that are killed, damaged bytes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from vllm_autofit import FIELDS
from vllm_autofit.errors import AutofitError
from vllm_autofit.experience import locking
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.record import SCHEMA, Record
from vllm_autofit.experience.store import Store
from vllm_autofit.experience.upkeep import KEPT_PER_KEY
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.units import GIB
from vllm_autofit.values import DeviceFacts, Request, Rules

KEY = "0123456789abcdef"
GROUPS = {"model": "model-0123456789abcdef", "device": "device-0123456789abcdef"}
SEED = 4
DEVICE = DeviceFacts("cuda", 0, "NVIDIA H100 80GB HBM3", 80 * GIB, 60 * GIB)


@dataclass(frozen=True)
class Sizes:
    """How much of each torture."""

    writers: int
    records_each: int
    changes_each: int
    kills: int
    flips: int


FULL = Sizes(writers=100, records_each=100, changes_each=10, kills=500, flips=10_000)
SMALL = Sizes(writers=6, records_each=10, changes_each=10, kills=25, flips=300)


@dataclass
class Result:
    """One row of the table. ``faults`` must be empty."""

    done: str
    faults: list[str] = field(default_factory=list)

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault unless ``holds``."""
        if not holds:
            self.faults.append(fault)


def start_record(run_id: str, key: str = KEY, number: int = 0) -> Record:
    """A record as large and as full as that of a real start on one device (about 8 KiB)."""
    rank = {
        "rank": 0,
        "device_index": 0,
        "before": {"device_index": 0, "free_bytes": 59 * GIB, "total_bytes": 80 * GIB},
        "weights_bytes": 16 * GIB,
        "activation_bytes": 2 * GIB,
        "after": {"device_index": 0, "free_bytes": 4 * GIB, "total_bytes": 80 * GIB},
    }
    why = "60.00 of 80.00 GiB free on NVIDIA H100 80GB HBM3, less 0.63 for start-up (record) and 1.30 headroom"
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "key": key,
        "started_at": "2026-11-21T12:00:00+00:00",
        "identity": {
            "vllm": "0.32.0",
            "model": "some/model",
            "driver": "575.57.08",
            "groups": GROUPS,
            "devices": [
                {"kind": "cuda", "index": 0, "name": DEVICE.name, "total_bytes": 80 * GIB, "free_bytes": 60 * GIB}
            ],
        },
        "settings": {f"memory_knob_{n}": {"value": n, "chosen_by": "vllm"} for n in range(60)}
        | {name: {"value": None, "chosen_by": "vllm"} for name in FIELDS},
        "plan": {"decisions": [{"field": name, "source": "record", "why": why, "value": 1} for name in FIELDS]},
        "engines": [
            {
                "dp_rank": 0,
                "enforce_eager": False,
                "kv_cache": {"tokens": 250_000, "blocks": 15_625, "block_size": 16, "pool_bytes": 30 * GIB},
                "ranks": [rank],
                "serving": {
                    "seconds": 3600.0,
                    "requests": 1000,
                    "devices": [{"device_index": 0, "least_free_bytes": 3 * GIB}],
                },
            }
        ],
        "outcome": {"state": "serving", "at": "2026-11-21T12:01:00+00:00"},
        "number": number,
    }


def run_id(number: int, process: int = 1) -> str:
    """The name of a start; a later one sorts later."""
    return f"20261121T{number:06}Z-{process}-aaaa"


# Many writers


def writers(folder: Path, sizes: Sizes) -> Result:
    """Each writes records of its own, under keys that all share."""
    keys = [f"{number:016x}" for number in range(-(-sizes.writers * sizes.records_each // KEPT_PER_KEY))]

    def write(writer: int) -> None:
        for number in range(sizes.records_each):
            key = keys[(writer * sizes.records_each + number) % len(keys)]
            name = run_id(number, writer + 1)
            Store(folder).update(key, name, lambda _, key=key, name=name: start_record(name, key))  # type: ignore[misc]

    failed = in_processes(write, sizes.writers)
    store = Store(folder)
    found = {record["run_id"] for record in store.everything()}
    expected = {run_id(n, w + 1) for w in range(sizes.writers) for n in range(sizes.records_each)}
    result = Result(f"{sizes.writers} writers x {sizes.records_each} records: {len(expected - found)} lost")
    result.expect(failed == 0, f"{failed} writers failed")
    result.expect(found == expected, f"{len(expected - found)} records lost")
    result.expect(store.skipped == [], f"unreadable: {store.skipped[:3]}")
    return result


def one_record(folder: Path, sizes: Sizes) -> Result:
    """All change the same record."""

    def write(writer: int) -> None:
        for number in range(sizes.changes_each):

            def change(record: Record | None, number: int = number) -> Record:
                record = record or {**start_record(run_id(0)), "changes": []}
                return {**record, "changes": [*record["changes"], [writer, number]]}

            Store(folder).update(KEY, run_id(0), change)

    failed = in_processes(write, sizes.writers)
    (record,) = Store(folder).records(KEY)
    changes = {tuple(change) for change in record["changes"]}
    expected = {(writer, number) for writer in range(sizes.writers) for number in range(sizes.changes_each)}
    lost = len(expected - changes)
    result = Result(f"{sizes.writers} writers x {sizes.changes_each} changes of one record: {lost} lost")
    result.expect(failed == 0, f"{failed} writers failed")
    result.expect(lost == 0, f"{lost} changes lost")
    return result


def in_processes(work: Callable[[int], None], count: int) -> int:
    """Do ``work`` in ``count`` processes at once; says how many failed."""
    children = [fork(work, number) for number in range(count)]
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def fork(work: Callable[[int], None], number: int) -> int:
    """``work(number)`` in a process of its own; its pid."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(number)
            status = 0
        except BaseException as error:
            print(f"process {number}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    return child


# Killed writers


def kills(folder: Path, sizes: Sizes) -> Result:
    """Writers that are killed at random moments, while others write the same record."""
    chance = random.Random(SEED)
    store = Store(folder)
    store.update(KEY, run_id(0), lambda _: start_record(run_id(0)))
    unreadable = forgotten = stuck = 0
    for number in range(sizes.kills):
        reader, writer = os.pipe()
        children = [fork(partial(write_until_killed, folder, writer), each) for each in range(2)]
        os.close(writer)
        time.sleep(chance.uniform(0, 0.04))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        acknowledged = [int(line) for line in os.fdopen(reader).read().split()]
        fresh = Store(folder)
        number_left = max((record["number"] for record in fresh.records(KEY)), default=-1)
        unreadable += len(fresh.skipped)
        forgotten += number_left < max(acknowledged, default=0)
        try:
            fresh.update(KEY, run_id(0), lambda record: {**(record or {}), "killed": number})  # noqa: B023
        except AutofitError:
            stuck += 1
    result = Result(f"{2 * sizes.kills} kills: {unreadable} unreadable, {forgotten} acknowledged changes lost")
    result.expect(unreadable == 0, f"{unreadable} records unreadable")
    result.expect(forgotten == 0, f"{forgotten} changes lost after they were acknowledged")
    result.expect(stuck == 0, f"{stuck} times nobody could write any more")
    findings = {finding.problem for finding in store.check()}
    result.expect(findings <= {"leftover"}, f"findings: {findings}")
    return result


def write_until_killed(folder: Path, acknowledge: int, _: int) -> None:
    """Raise the number in a record, and say so once it is written, for ever."""

    written: list[int] = []

    def change(record: Record | None) -> Record:
        record = record or start_record(run_id(0))
        written.append(record["number"] + 1)
        return {**record, "number": written[-1]}

    while True:
        Store(folder).update(KEY, run_id(0), change)
        os.write(acknowledge, b"%d\n" % written[-1])


def without_locks(folder: Path, sizes: Sizes) -> Result:
    """A tenth of both on a file system that grants every lock to everybody."""
    few = replace(sizes, writers=max(4, sizes.writers // 10), kills=sizes.kills // 10)
    with mock.patch.object(locking, "locks_work", return_value=False):
        parts = [one_record(folder / "changed", few), kills(folder / "killed", few)]
    return Result("; ".join(part.done for part in parts), [fault for part in parts for fault in part.faults])


# Damaged bytes


def flips(folder: Path, sizes: Sizes) -> Result:
    """Records, pins and exports with flipped bits, cut short or with bytes put in; each is read and planned with."""
    chance = random.Random(SEED)
    store = Store(folder)
    record = store.update(KEY, run_id(0), lambda _: start_record(run_id(0)))
    store.update(KEY, run_id(1), lambda _: start_record(run_id(1)))
    pin = store.pin(KEY, {"gpu_memory_utilization": 0.5, "max_model_len": 4096})
    export = folder / "export.json"
    export.write_text(json.dumps(store.export(store.everything())))
    whole = {path: path.read_bytes() for path in (record, pin, export)}
    used = unsafe = crashed = 0
    for _ in range(sizes.flips):
        path = chance.choice([record, record, pin, export])
        path.write_bytes(damaged(whole[path], chance))
        try:
            wrong, records = plan_with(Store(folder, [export]))
            used += records
            unsafe += bool(wrong)
        except Exception as error:
            crashed += 1
            print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
        for aside in (*record.parent.glob("*.damaged"), *pin.parent.glob("*.damaged")):
            aside.unlink()
        path.write_bytes(whole[path])
    result = Result(f"{sizes.flips} files damaged: {crashed} crashes, {unsafe} unsafe plans")
    result.expect(crashed == 0, f"{crashed} crashes")
    result.expect(unsafe == 0, f"{unsafe} unsafe plans")
    result.expect(used > sizes.flips, "the sound record beside was not used every time")
    return result


ODD = b'-1 0 1e999 NaN 99999999999999999999 1.5 null true "" "x" [] {} [[]] -9223372036854775808'.split()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Mostly a few flipped bits; often another value in the place of one, now and then cut short, or with bytes put in.

    Flipped bits are the disk's work; a person with an editor leaves JSON that is whole and says something else.
    """
    if chance.random() < 0.1:
        return content[: chance.randrange(len(content))]
    if chance.random() < 0.4:
        value = chance.choice(list(re.finditer(rb'(?<=: )("[^"]*"|[-\w.]+)', content)))
        return content[: value.start()] + chance.choice(ODD) + content[value.end() :]
    spoiled = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.1:
        place = chance.randrange(len(spoiled))
        spoiled[place:place] = chance.randbytes(chance.randrange(1, 64))
    return bytes(spoiled)


def plan_with(store: Store) -> tuple[str, int]:
    """What is unsafe about a plan made with what a store holds (empty: nothing), and how many records it held."""
    records = list(store.records(KEY))
    lessons = lessons_from(
        records,
        same_device=store.related(GROUPS["device"]),
        same_model=store.related(GROUPS["model"]),
        pinned=(store.pinned(KEY) or {}).get("settings"),
    )
    request = Request("some/model", dict.fromkeys(FIELDS) | {"kv_cache_dtype": "auto"}, frozenset())
    filled = make_plan(request, [DEVICE], lessons, Rules()).filled
    asked: Any = filled.get("gpu_memory_utilization", 0)
    context: Any = filled.get("max_model_len", -1)
    wrong = "" if 0 <= asked * DEVICE.total_bytes <= DEVICE.free_bytes else f"asks for {asked}"
    return wrong or ("" if context == -1 or context >= 1 else f"context {context}"), len(records)
