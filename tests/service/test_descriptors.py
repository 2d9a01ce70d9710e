"""The division of file descriptors. tests/end_to_end/test_siege.py runs a real service with few of them."""

import logging
import resource
import subprocess
import sys

import pytest

from service import descriptors


@pytest.fixture
def already_open(tmp_path, monkeypatch):
    """A process with twenty open descriptors."""
    for number in range(20):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(descriptors, "OWN_PATH", tmp_path)


@pytest.mark.parametrize(
    ("limit", "wanted", "connections"),
    [
        (20_000, None, 4096),  # the default
        (20_000, 100, 100),
        (1024, None, 940),  # 1,024 - 20 - 64
        (128, None, 66),  # 128 - 20 - 128 // 3
        (48, None, 12),
        (20, None, 8),
    ],
)
def test_some_descriptors_are_kept_for_other_purposes(already_open, limit, wanted, connections):
    assert descriptors.for_connections(limit, wanted) == connections


def test_a_limit_that_leaves_too_few_connections_is_reported(already_open, caplog):
    descriptors.for_connections(1024)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "1024 file descriptors leaves room for 940 connections" in record.getMessage()


def test_the_limit_is_raised_as_far_as_the_system_permits():
    program = "from service import descriptors; print(descriptors.raise_limit())"
    soft, hard = 100, 300
    ran = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "300\n"
