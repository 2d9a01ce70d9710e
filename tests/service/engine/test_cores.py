import os

import pytest

from service.engine.cores import usable_cores


def test_the_usable_cores_are_between_one_and_the_cores_of_the_host():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


UNIFIED = "0::/slice/own\n"
SEPARATE = "5:memory:/elsewhere\n4:cpu,cpuacct:/docker/own\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        (UNIFIED, {"slice/own/cpu.max": "150000 100000"}, 2),  # 1.5 cores, rounded up
        # the outer group has the smaller quota
        (UNIFIED, {"slice/own/cpu.max": "max 100000", "slice/cpu.max": "50000 100000"}, 1),
        (UNIFIED, {"slice/own/cpu.max": "400000 100000", "slice/cpu.max": "300000 100000"}, 3),
        (UNIFIED, {"slice/own/cpu.max": "max 100000"}, 8),
        (UNIFIED, {"other/cpu.max": "100000 100000"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # a container sees its own group as the root
        (
            SEPARATE,
            {"cpu/docker/own/cpu.cfs_quota_us": "200000", "cpu/docker/own/cpu.cfs_period_us": "100000"},
            2,
        ),
        # a container sees its own group as the root
        (SEPARATE, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        (SEPARATE, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (UNIFIED, {}, 8),
        (None, {"cpu.max": "100000 100000"}, 8),  # not Linux
    ],
)
def test_the_quotas_of_control_groups_limit_the_usable_cores(tmp_path, monkeypatch, membership, files, cores):
    """Quotas and periods are in microseconds. The affinity allows eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{text}\n")
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    assert usable_cores(tmp_path / "cgroup", tmp_path / "membership") == cores
