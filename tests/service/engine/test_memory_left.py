"""The memory that is left, from files like those of the kernel."""

from pathlib import Path

import pytest

from service.engine.memory_left import memory_left

GIB = 2**30


@pytest.fixture
def machine(tmp_path) -> Path:
    (tmp_path / "meminfo").write_text(f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: {4 * GIB // 1024} kB\n")
    return tmp_path / "meminfo"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{value}\n")


def test_without_groups_it_is_what_the_machine_has_left(tmp_path, machine):
    assert memory_left(tmp_path, tmp_path / "nowhere", machine) == 4 * GIB
    assert memory_left(tmp_path, tmp_path / "nowhere", tmp_path / "nowhere") is None


def test_the_tightest_group_counts_and_its_cached_files_can_be_dropped(tmp_path, machine):
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    groups = tmp_path / "groups"
    write(groups / "a", memory_max=2 * GIB, memory_current=GIB, memory_stat=f"anon 5\ninactive_file {GIB // 2}")
    write(groups / "a" / "b", memory_max="max", memory_current=GIB)
    assert memory_left(groups, tmp_path / "cgroup", machine) == GIB + GIB // 2  # 2 - 1 + 0.5
    write(groups / "a" / "b", memory_max=GIB + 5, memory_current=GIB)
    assert memory_left(groups, tmp_path / "cgroup", machine) == 5
    write(groups / "a" / "b", memory_max=GIB, memory_current=GIB + 5)
    assert memory_left(groups, tmp_path / "cgroup", machine) == 0


def test_groups_of_version_1_are_read(tmp_path, machine):
    (tmp_path / "cgroup").write_text("3:cpu,cpuacct:/x\n2:memory:/docker/x\n")
    write(tmp_path / "groups" / "memory", memory_limit_in_bytes=2 * GIB, memory_usage_in_bytes=GIB)
    assert memory_left(tmp_path / "groups", tmp_path / "cgroup", machine) == GIB
    write(tmp_path / "groups" / "memory", memory_limit_in_bytes=2**63 - 4096)
    assert memory_left(tmp_path / "groups", tmp_path / "cgroup", machine) == 4 * GIB
