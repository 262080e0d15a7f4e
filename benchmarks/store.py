"""Torture of the record store: processes that write at once or are killed, damaged bytes, full and read-only disks.

    python -m benchmarks.store [--small] [NAME ...]

Without names all of it runs. ``--small`` is what the tests run. Prints a table; the status is 1 if anything was lost,
couldn't be read, crashed, or made a plan that asks for more than there is.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from benchmarks.store_disks import full_disk, read_only
from benchmarks.store_torture import (
    FULL,
    GROUPS,
    SEED,
    SMALL,
    Result,
    Sizes,
    flips,
    kills,
    one_record,
    without_locks,
    writers,
)
from vllm_autofit.experience.lessons import READ
from vllm_autofit.experience.store import Store

LOOKUP_MILLISECONDS = 5.0
"""Most that looking up one key may take among 10,000 records (issue 4)."""


def lookups(folder: Path, sizes: Sizes) -> Result:
    """What a start reads, with as many records as are kept."""
    writers(folder, sizes)
    keys = sorted(path.name for path in (folder / "starts").iterdir())
    count = sum(1 for _ in (folder / "starts").glob("*/*.json"))
    chance = random.Random(SEED)

    def newest(key: str) -> object:
        return list(islice(Store(folder).records(key), READ))

    def related(_: str) -> object:
        store = Store(folder)
        return [list(store.related(group)) for group in GROUPS.values()]

    looks: dict[str, Callable[[str], object]] = {
        f"the {READ} newest of a key": newest,
        "all of a key": lambda key: list(Store(folder).records(key)),
        "related": related,
        "a pin": lambda key: Store(folder).pinned(key),
    }
    times = {
        name: statistics.median(_milliseconds(look, chance.choice(keys)) for _ in range(51))
        for name, look in looks.items()
    }
    figures = ", ".join(f"{name} {spent:.2f} ms" for name, spent in times.items())
    result = Result(f"{count} records of {len(keys)} keys: {figures} (median)")
    if sizes == FULL:
        spent = times[f"the {READ} newest of a key"]
        result.expect(spent <= LOOKUP_MILLISECONDS, f"a lookup took {spent:.2f} ms")
    return result


def _milliseconds(look: Callable[[str], object], key: str) -> float:
    began = time.perf_counter()
    look(key)
    return (time.perf_counter() - began) * 1000


TORTURES: dict[str, Callable[[Path, Sizes], Result]] = {
    "writers": writers,
    "one-record": one_record,
    "kills": kills,
    "no-locks": without_locks,
    "flips": flips,
    "full-disk": full_disk,
    "read-only": read_only,
    "lookups": lookups,
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TORTURES)}; all when left out")
    parser.add_argument("--small", action="store_true", help="what the tests run")
    options = parser.parse_args()
    unknown = set(options.names) - TORTURES.keys()
    if unknown:
        parser.error(f"no torture {', '.join(sorted(unknown))}")
    faults = 0
    for name in options.names or TORTURES:
        with tempfile.TemporaryDirectory(prefix="vllm-autofit-store-") as place:
            began = time.perf_counter()
            result = TORTURES[name](Path(place) / "cache", SMALL if options.small else FULL)
            print(f"{name:11} {time.perf_counter() - began:7.1f} s  {result.done}", flush=True)
            for fault in result.faults:
                print(f"{'':11} FAULT: {fault}", flush=True)
            faults += len(result.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
