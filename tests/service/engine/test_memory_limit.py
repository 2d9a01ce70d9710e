"""The memory that the process may use, its division, and the return of freed blocks."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from service.engine import memory_limit
from service.engine.memory_limit import LEAST_BUDGET, MIB, available, divide, resident

GIB = 2**30
UNIFIED = "0::/slice/own\n"
SEPARATE = "5:memory:/docker/own\n4:cpu,cpuacct:/elsewhere\n0::/\n"
UNLIMITED = 9223372036854771712  # version 1 has a number instead of "max"


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        (UNIFIED, {"slice/own/memory.max": 2 * GIB}, 2 * GIB),
        (UNIFIED, {"slice/own/memory.max": "max", "slice/memory.max": GIB}, GIB),  # the outer group has the limit
        (UNIFIED, {"slice/own/memory.max": 3 * GIB, "slice/memory.max": GIB}, GIB),
        ("0::/\n", {"memory.max": GIB}, GIB),  # a container sees its own group as the root
        (SEPARATE, {"memory/docker/own/memory.limit_in_bytes": GIB}, GIB),
        (SEPARATE, {"memory/memory.limit_in_bytes": GIB}, GIB),  # a container sees its own group as the root
        (SEPARATE, {"memory/docker/own/memory.limit_in_bytes": UNLIMITED, "memory/memory.limit_in_bytes": GIB}, GIB),
        # without a limit, half of the machine's 8 GiB
        (SEPARATE, {"memory/docker/own/memory.limit_in_bytes": UNLIMITED}, 4 * GIB),
        (UNIFIED, {"slice/own/memory.max": "max"}, 4 * GIB),
        (UNIFIED, {"other/memory.max": GIB}, 4 * GIB),
        (UNIFIED, {"slice/own/memory.max": 16 * GIB}, 4 * GIB),  # more than there is limits nothing
        (None, {"memory.max": GIB}, 4 * GIB),  # not Linux
    ],
)
def test_the_limits_of_control_groups_bound_the_memory(tmp_path, monkeypatch, membership, files, limit):
    monkeypatch.setattr(memory_limit, "machine_memory", lambda: 8 * GIB)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(f"{text}\n")
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    assert available(tmp_path / "cgroup", tmp_path / "membership") == limit


@pytest.mark.parametrize(
    ("limit", "used", "needed", "set_aside", "budget"),
    [
        (2048, 300, 160, 160 + 128, 2048 - 300 - 288),  # a sixteenth of 2048 is 128
        (512, 200, 100, 100 + 64, 512 - 200 - 164),  # the reserve is at least 64
        (512, 400, 160, 160 + 64, LEAST_BUDGET // MIB),
    ],
)
def test_the_budget_is_what_models_and_reserves_leave(limit, used, needed, set_aside, budget):
    assert divide(limit * MIB, used * MIB, needed * MIB) == tuple(
        part * MIB for part in (limit, used, set_aside, budget)
    )


def test_the_resident_memory_is_read_in_bytes():
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux has /proc/self/statm")
    assert 5 * MIB < resident() < memory_limit.machine_memory()


FREED_BLOCKS = """
import ctypes
from service.engine import memory_limit
from service.engine.memory_limit import MIB, resident

memory_limit.return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before, size = resident(), 16 * MIB
for _ in range(3):  # by default, glibc would keep the second and the third block in its heap
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    assert resident() - before > size * 3 // 4
    libc.free(block)
    assert resident() - before < size // 4
"""


def test_freed_blocks_of_large_images_return_to_the_system():
    if not hasattr(ctypes.CDLL(None), "mallopt") or not Path("/proc/self/statm").exists():
        pytest.skip("needs glibc on Linux")
    subprocess.run([sys.executable, "-c", FREED_BLOCKS], check=True)  # a process of its own, in which nothing else runs
