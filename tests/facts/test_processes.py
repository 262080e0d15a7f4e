"""What a family of processes holds, measured on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_autofit.facts.processes import family_bytes

MIB = 2**20
HOLDS = 64 * MIB

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")

CHILD = f"""
held = bytearray(b"x") * {HOLDS}
print("ready", flush=True)
input()
"""


def test_what_a_child_takes_is_counted_and_what_it_gives_back_is_not() -> None:
    before = family_bytes(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        during = family_bytes(os.getpid())
        child.communicate(b"\n")
    after = family_bytes(os.getpid())
    assert before is not None
    assert during is not None
    assert after is not None
    assert HOLDS < during - before < HOLDS + 32 * MIB, "the child's own memory and its interpreter"
    assert abs(after - before) < 16 * MIB


def test_pages_that_a_fork_shares_are_counted_once() -> None:
    held = bytearray(b"x") * HOLDS
    before = family_bytes(os.getpid())
    waits, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(waits, 1)
        os._exit(0)
    during = family_bytes(os.getpid())
    os.write(tells, b"x")
    os.waitpid(child, 0)
    for handle in (waits, tells):
        os.close(handle)
    assert len(held) == HOLDS
    assert before is not None
    assert during is not None
    assert during - before < HOLDS // 2


def test_a_family_that_we_are_not_of_is_not_ours_to_count() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert family_bytes(child.pid) is None
        child.communicate(b"\n")
    assert family_bytes(child.pid) is None, "nor a process that is gone"
