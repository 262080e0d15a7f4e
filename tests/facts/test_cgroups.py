"""What control groups leave, read from trees of files laid out as the kernel lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.builders import GIB, MIB
from vllm_autofit.facts.cgroups import memory_room

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
UNLIMITED_V1 = 9223372036854771712

Group = Mapping[str, object]


def group(limit: int | str, used: int, **more: object) -> Group:
    """The files of a group of version 2; ``more`` are ``high`` and lines of ``memory.stat``."""
    return {"memory.max": limit, "memory.current": used, "memory.high": more.pop("high", "max"), "memory.stat": more}


def old_group(limit: int, used: int, **statistics: object) -> Group:
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": statistics}


def tree(root: Path, mount: str, own: str, groups: Mapping[str, Group], top: str = "sys/fs/cgroup") -> Path:
    """A file system in which this process is in the group ``own`` (a line of ``/proc/self/cgroup``)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(f"30 23 0:27 / /tmp rw - tmpfs tmpfs rw\n{mount}\n")
    (root / "proc/self/cgroup").write_text(f"{own}\n")
    for place, files in groups.items():
        folder = root / top / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            lines = [f"{key} {each}" for key, each in value.items()] if isinstance(value, Mapping) else [str(value)]
            (folder / name).write_text("\n".join(lines) + "\n")
    return root


def test_without_a_limit_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert memory_room(tree(tmp_path, V2, "0::/user.slice", {"": {}, "user.slice": group("max", 2 * GIB)})) is None


def test_without_control_groups_either(tmp_path: Path) -> None:
    assert memory_room(tmp_path) is None


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    assert memory_room(tree(tmp_path, V2, "0::/", {"": group(8 * GIB, 2 * GIB)})) == 6 * GIB


def test_pages_of_files_are_given_back_and_shared_memory_is_not(tmp_path: Path) -> None:
    statistics = {"inactive_file": GIB, "active_file": 2 * GIB, "shmem": GIB, "inactive_anon": GIB, "file": 4 * GIB}
    assert memory_room(tree(tmp_path, V2, "0::/", {"": group(8 * GIB, 7 * GIB, **statistics)})) == 4 * GIB


def test_the_tightest_of_all_groups_on_the_way_up_counts(tmp_path: Path) -> None:
    groups = {
        "": {},
        "system.slice": group(6 * GIB, 5 * GIB),
        "system.slice/vllm.service": group(8 * GIB, 2 * GIB),
        "user.slice": group(GIB, GIB),
    }
    assert memory_room(tree(tmp_path, V2, "0::/system.slice/vllm.service", groups)) == GIB


def test_what_throttles_limits_too(tmp_path: Path) -> None:
    assert memory_room(tree(tmp_path, V2, "0::/", {"": group(8 * GIB, GIB, high=4 * GIB)})) == 3 * GIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_room(tmp_path) == 3 * GIB


def test_swap_is_no_room(tmp_path: Path) -> None:
    files = {**group(4 * GIB, GIB), "memory.swap.max": 64 * GIB, "memory.swap.current": 0}
    assert memory_room(tree(tmp_path, V2, "0::/", {"": files})) == 3 * GIB


def test_a_group_over_its_limit_has_no_room_left(tmp_path: Path) -> None:
    assert memory_room(tree(tmp_path, V2, "0::/", {"": group(GIB, 2 * GIB, high=512 * MIB)})) == 0


def test_a_limit_above_the_hosts_memory_is_none(tmp_path: Path) -> None:
    more = psutil.virtual_memory().total + GIB
    assert memory_room(tree(tmp_path, V2, "0::/", {"": group(more, GIB)})) is None


def test_a_group_of_another_namespace(tmp_path: Path) -> None:
    """Its name leads out of what is mounted: what is mounted still counts."""
    assert memory_room(tree(tmp_path, V2, "0::/../elsewhere", {"": group(4 * GIB, GIB)})) == 3 * GIB


@pytest.mark.parametrize(
    ("shown", "own", "place"),
    [
        pytest.param("/", "4:cpu,memory:/docker/1a2b", "docker/1a2b", id="the whole tree"),
        pytest.param("/docker/1a2b", "4:cpu,memory:/docker/1a2b", "", id="the container's own part of it"),
    ],
)
def test_version_1(tmp_path: Path, shown: str, own: str, place: str) -> None:
    statistics = {"inactive_file": 1, "active_file": 1, "total_inactive_file": GIB, "total_active_file": GIB}
    groups = {"": old_group(UNLIMITED_V1, 20 * GIB), place: old_group(8 * GIB, 5 * GIB, **statistics)}
    there = tree(tmp_path, V1.format(shown=shown), f"5:devices:/other\n{own}", groups, "sys/fs/cgroup/memory")
    assert memory_room(there) == 5 * GIB


def test_version_2_beside_version_1_controls_no_memory(tmp_path: Path) -> None:
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    mounts = f"{V1.format(shown='/')}\n{unified}"
    groups = {"memory/a": old_group(8 * GIB, GIB), "unified": {}}
    assert memory_room(tree(tmp_path, mounts, "4:memory:/a\n0::/", groups)) == 7 * GIB


@pytest.mark.parametrize("damage", ["", "garbage\n", "\xff\n", "-1\n"])
def test_files_that_say_nothing_of_use(tmp_path: Path, damage: str) -> None:
    tree(tmp_path, V2, "0::/", {"": {"memory.max": damage, "memory.current": GIB}})
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text(damage)
    assert memory_room(tmp_path) is None
