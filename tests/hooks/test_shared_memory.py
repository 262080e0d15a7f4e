"""Shared memory of processes that were killed goes, with no word of Python's about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ATTEMPT = """
import multiprocessing, os, signal, sys
from multiprocessing import shared_memory as of_python
from vllm_autofit.hooks import shared_memory

def engine(names):
    lock = multiprocessing.get_context("spawn").Lock()
    memory = of_python.SharedMemory(create=True, size=1 << 20)
    names.send(shared_memory.mapped())
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    users = of_python.SharedMemory(create=True, size=1 << 20)
    here, there = context.Pipe()
    process = context.Process(target=engine, args=(there,))
    process.start()
    names = here.recv()
    process.join()
    assert len([name for name in names if name != users.name]) == 2, names
    shared_memory.remove([*names, users.name])
    for name in names:
        assert os.path.exists(f"/dev/shm/{{name}}") == (name == users.name), name
    assert os.path.exists(f"/dev/shm/{{users.name}}")
    users.close()
    users.unlink()
    print("done")
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_what_a_killed_process_left_is_removed_and_what_is_used_here_stays(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ATTEMPT.format(method=method))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")
