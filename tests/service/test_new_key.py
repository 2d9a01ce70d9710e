"""`faster-rcnn key NAME`."""

import subprocess
import sys
from pathlib import Path

import pytest

from service import keys
from service.new_key import main

FULL = Path("/dev/full")


def test_it_prints_a_key_and_the_line_that_makes_it_valid(capsys, tmp_path):
    assert main(["alice", "--in-flight", "4", "--per-second=0.5"]) == 0
    _, key, _, line = [each.strip() for each in capsys.readouterr().out.splitlines()]
    (tmp_path / "keys").write_text(line)
    found = keys.Keys(tmp_path / "keys").find(key.encode())
    assert (found.name, found.limits) == ("alice", (4, 0.5))
    assert key not in line


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "give the NAME of the client"),
        (["a b"], "a name has 1 to 64 of the characters"),
        (["alice", "--in-flight", "0"], "in-flight must be a whole number of at least 1"),
        (["alice", "--per-second", "often"], "per-second must be a number greater than 0"),
        (["alice", "--per-seconds", "1"], "unexpected argument '--per-seconds'"),
        (["alice", "bob"], "unexpected argument 'bob'"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, fault):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"faster-rcnn key: {fault}")
    assert printed.err.count("\n") == 1


def test_it_needs_neither_torch_nor_the_server():
    program = """
import sys
from service.command_line import main
assert main(["key", "alice"]) == 0
print([name for name in ("torch", "numpy", "uvicorn", "fastapi", "onnxruntime") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(not FULL.exists(), reason="this machine has no /dev/full")
def test_a_key_that_cannot_be_printed_is_an_error():
    with FULL.open("w") as full:
        command = [
            sys.executable,
            "-c",
            "import sys; from service.command_line import main; sys.exit(main(['key', 'a']))",
        ]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("faster-rcnn key: the key cannot be printed: No space left on device\n")
