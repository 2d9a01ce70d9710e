"""Files are written whole or not at all, and a message names the file, the cause and the remedy."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from PIL import Image

from faster_rcnn.detector.checkpoint import read_checkpoint, save_state
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.files import existing, in_words, size, write_bytes, write_file, write_image, write_text
from faster_rcnn.proposal_sources.table import ProposalTable, ranked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with a million bytes of room, as a full disk has."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1000k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_file_that_does_not_fit_leaves_the_previous_one_and_no_part(small_disk: Path) -> None:
    file = small_disk / "a.bin"
    write_bytes(file, b"first")
    with pytest.raises(OSError, match=r"a\.bin: no room on the disk \(2\.0 MB needed, 1\.0 MB free\); free some space"):
        write_bytes(file, bytes(2_000_000))
    assert file.read_bytes() == b"first"
    assert list(small_disk.iterdir()) == [file]


@pytest.mark.contract("6.9")
def test_a_checkpoint_on_a_full_disk_is_reported_in_one_line_and_the_last_one_is_intact(small_disk: Path) -> None:
    detector = torch.nn.Linear(2, 2)
    detector.config = default_config("compact", ("a",))  # type: ignore[assignment]
    save_state(small_disk / "checkpoint.pt", detector, "joint", 1)  # type: ignore[arg-type]  # small, with a config
    detector.weight = torch.nn.Parameter(torch.zeros(1_000_000))  # 4 MB
    with pytest.raises(OSError, match=r"checkpoint\.pt: no room on the disk \(4\.0 MB needed, 1\.0 MB free\)"):
        save_state(small_disk / "checkpoint.pt", detector, "joint", 2)  # type: ignore[arg-type]
    assert read_checkpoint(small_disk)["iteration"] == 1
    assert [file.name for file in small_disk.iterdir()] == ["checkpoint.pt"]


def test_images_and_tables_that_do_not_fit_leave_nothing(small_disk: Path) -> None:
    noise = Image.effect_noise((2000, 2000), 100)
    table = ProposalTable({"a": ranked(torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(100_000, 1).numpy())}, "made")
    for write in (
        lambda: write_image(small_disk / "a.jpg", noise, 95),
        lambda: table.save(small_disk / "a.npz"),  # 100,000 rows of four numbers and a score: 2 MB
    ):
        with pytest.raises(OSError, match=r"no room on the disk \([\d.]+ MB needed, 1\.0 MB free\)"):
            write()
    assert not list(small_disk.iterdir())


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/a.bin")
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "a.bin").read_bytes() == b"new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "link", "pipe"]


def test_an_error_in_the_midst_of_writing_leaves_the_previous_file(tmp_path: Path) -> None:
    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("a fault")

    write_text(tmp_path / "a", "whole")
    with pytest.raises(RuntimeError, match="a fault"):
        write_file(tmp_path / "a", fail)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "whole")]


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from faster_rcnn.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path({str(tmp_path / "a")!r}), bytes(2000))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (
        "a: the file is larger than the system allows; raise the limit on the size of a file (ulimit -f)" in done.stdout
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [number for number in errno.errorcode if number < 200])
def test_no_operating_system_error_is_shown_by_its_number(code: int, tmp_path: Path) -> None:
    line = in_words(OSError(code, "what the system says"), tmp_path / "a")
    assert line.startswith(f"{tmp_path}/a: ")
    assert "; " in line  # the remedy
    assert "Errno" not in line


def test_a_message_names_the_file_and_never_its_temporary_name() -> None:
    error = FileNotFoundError(errno.ENOENT, "", "/nowhere/.a.7.part")
    assert in_words(error, Path("/nowhere/a")) == "/nowhere/a: does not exist; check the path"


def test_sizes_are_readable() -> None:
    assert [size(number) for number in (999, 1500, 29_699_649, 3 * 10**9)] == [
        "999 bytes",
        "1.5 kB",
        "29.7 MB",
        "3.0 GB",
    ]


def test_the_nearest_folder_that_exists_is_found(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path


def test_a_checkpoint_has_about_the_size_of_its_tensors(tmp_path: Path) -> None:
    """The sizes in messages and the check before a run rely on it."""
    detector = FasterRCNN(default_config("compact", ("a",)))
    save_state(tmp_path / "checkpoint.pt", detector, "joint", 1)
    tensors = sum(value.numel() * value.element_size() for value in detector.state_dict().values())
    assert tensors <= (tmp_path / "checkpoint.pt").stat().st_size < 1.1 * tensors
