"""The record store on disks that are full or can't be written."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.store_torture import KEY, Result, Sizes, fork, run_id, start_record
from vllm_autofit.errors import StoreError
from vllm_autofit.experience.store import Store


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[bool]:
    """A disk of its own at ``folder``; False where this user can't mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    return False


def full_disk(folder: Path, _: Sizes) -> Result:
    """A disk with room for 0, 1, 2 ... more pages, or files."""
    result = Result("")
    failures = tries = 0
    with small_disk(folder / "pages", "size=512k") as mounted:
        if not mounted:
            return _file_size_limit(folder)
        for pages in range(14):
            tries += 1
            failures += _write_when_full(folder / "pages", pages, result)
    with small_disk(folder / "files", "size=8m,nr_inodes=40") as mounted:
        for files in range(14 if mounted else 0):
            tries += 1
            failures += _write_when_full(folder / "files", files, result, of_files=True)
    result.expect(0 < failures < 4 * tries, f"{failures} of {4 * tries} writes failed: the disk was never nearly full")
    result.done = f"{4 * tries} writes to a nearly full disk: {failures} refused, {len(result.faults)} did harm"
    return result


def _write_when_full(disk: Path, room: int, result: Result, of_files: bool = False) -> int:
    """Try to change, to add, to pin and to join a group with only so much room left; says how many failed."""
    folder = disk / str(room)
    store = Store(folder)
    store.update(KEY, run_id(0), lambda _: start_record(run_id(0)))
    filler = disk / "filler"
    filler.mkdir()
    _fill(filler, room, of_files)
    failed = 0
    writes: list[Callable[[], object]] = [
        lambda: store.update(KEY, run_id(0), lambda _: start_record(run_id(0), number=1)),
        lambda: store.update(KEY, run_id(1), lambda _: start_record(run_id(1))),
        lambda: store.update("b" * 16, run_id(2), lambda _: start_record(run_id(2), "b" * 16)),
        lambda: store.pin(KEY, {"max_num_seqs": 8}),
    ]
    for write in writes:
        try:
            write()
        except StoreError:
            failed += 1
    found = {record["run_id"]: record for record in store.everything()}
    result.expect(run_id(0) in found, f"{folder.name}: the record from before is lost")
    result.expect(store.skipped == [], f"{folder.name}: {store.skipped}")
    for each in filler.iterdir():
        each.unlink()
    filler.rmdir()
    store.update(KEY, run_id(3), lambda _: start_record(run_id(3)))
    problems = {finding.problem for finding in store.check()}
    result.expect(problems <= {"missing group marker"}, f"{folder.name}: {problems}")
    for each in sorted(folder.rglob("*"), reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()
    return failed


def _fill(folder: Path, room: int, of_files: bool) -> None:
    """Take all that is left of a disk, then give ``room`` pages or files back."""
    taken: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            path = folder / str(len(taken))
            path.write_bytes(b"" if of_files else bytes(4096))
            taken.append(path)
    for path in taken[-room:] if room else ():
        path.unlink()


def _file_size_limit(folder: Path) -> Result:
    """What a user who can't mount can try: files may only grow so large."""
    store = Store(folder / "store")
    store.update(KEY, run_id(0), lambda _: start_record(run_id(0)))

    def write(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 512, resource.RLIM_INFINITY))
        with contextlib.suppress(StoreError):
            store.update(KEY, run_id(0), lambda _: start_record(run_id(0), number=limit))

    crashed = sum(os.waitpid(fork(write, limit), 0)[1] != 0 for limit in range(20))
    found = [record["run_id"] for record in store.records(KEY)]
    result = Result(f"20 limits on the size of files (mounting is not allowed here): {crashed} crashes")
    result.expect(crashed == 0 and found == [run_id(0)] and not store.skipped, f"found {found}, {store.skipped}")
    return result


def read_only(folder: Path, _: Sizes) -> Result:
    """A disk that can't be written: everything is read, nothing is, and damage stays where it is."""
    with small_disk(folder / "disk", "size=1m") as mounted:
        store = Store(folder / "disk" / "store")
        store.update(KEY, run_id(0), lambda _: start_record(run_id(0)))
        store.path(KEY, run_id(1)).write_text("damage")
        if mounted:
            _mount("-o", "remount,ro", str(folder / "disk"))
        elif os.getuid() == 0:
            return Result("not tried: nothing is read-only to root, and mounting is not allowed here")
        else:
            for each in (store.folder, *store.folder.rglob("*")):
                each.chmod(0o500 if each.is_dir() else 0o400)
        result = Result("a read-only disk")
        found = [record["run_id"] for record in store.records(KEY)]
        result.expect(found == [run_id(0)], f"found {found}")
        result.expect(len(store.skipped) == 1 and "left where it is" in store.skipped[0], f"{store.skipped}")
        for write in (
            lambda: store.update(KEY, run_id(0), lambda _: start_record(run_id(0))),
            lambda: store.pin(KEY, {"max_num_seqs": 8}),
            lambda: store.forget([run_id(0)]),
        ):
            try:
                write()
            except StoreError:
                continue
            result.faults.append("something was written")
        for each in (store.folder, *store.folder.rglob("*")) if not mounted else ():
            each.chmod(0o700)
    result.done = "a read-only disk: read, and 3 of 3 writes refused"
    return result
