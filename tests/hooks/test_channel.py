"""What engine processes tell the front end while it waits for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm_autofit.hooks.channel import close_channel, heard, open_channel, tell

FROM_ELSEWHERE = """
import json, sys
from vllm_autofit.hooks.channel import tell
tell(json.loads(sys.argv[1]), failure={"phase": "kv_alloc"})
"""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_other_processes_are_heard_in_order() -> None:
    run: dict[str, Any] = {}
    open_channel(run)
    tell(run, phase="weight_load")
    told = f'{{"channel": "{run["channel"]}"}}'
    subprocess.run([sys.executable, "-c", FROM_ELSEWHERE, told], check=True)
    assert heard(run) == [{"phase": "weight_load"}, {"failure": {"phase": "kv_alloc"}}]
    close_channel(run)


def test_a_line_that_was_never_finished_is_passed_over() -> None:
    run: dict[str, Any] = {}
    open_channel(run)
    tell(run, phase="weight_load")
    with Path(run["channel"]).open("a") as file:
        file.write('{"phase": "kv_')
    assert heard(run) == [{"phase": "weight_load"}]
    close_channel(run)


def test_without_a_channel_nothing_is_said_and_nothing_heard() -> None:
    tell({}, phase="weight_load")
    assert heard({}) == []


def test_nothing_is_left_and_a_file_that_got_its_number_is_not_written_to(tmp_path: Path) -> None:
    before = open_files()
    run: dict[str, Any] = {}
    open_channel(run)
    later = dict(run)
    number = int(run["channel"].rpartition("/")[2])
    close_channel(run)
    assert run == {}
    assert open_files() == before
    with (tmp_path / "users").open("w") as file:  # gets the lowest number that is free
        assert file.fileno() == number
        tell(later, phase="weight_load")
    assert (tmp_path / "users").read_text() == ""
