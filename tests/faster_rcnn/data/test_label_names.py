"""Class names from a text file."""

import re
from pathlib import Path

import pytest

from faster_rcnn.data.label_names import distinct, read_labels


def written(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"


def test_each_line_is_a_label_and_empty_lines_at_the_end_are_ignored(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, "red cell\n Katze \nпёс\n\n  \n"), 3) == ("red cell", "Katze", "пёс")
    # Some editors write a byte order mark and CRLF.
    assert read_labels(written(tmp_path, "\ufeffcat\r\ndog"), 2) == ("cat", "dog")


def test_unused_category_numbers_get_unique_names() -> None:
    assert distinct(["person", "N/A", "hat", "N/A"], "COCO") == ("person", "N/A 2", "hat", "N/A 4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cat\n", "has 1 labels, but the detector has 2 classes (without background)"),
        ("cat\ndog\nhen\n", "has 3 labels, but the detector has 2 classes"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ncat\n", "cat appears on lines 1, 2; class names must be unique"),
        ("__background__\ncat\ndog\n", "line 1 is __background__, which is the background; remove that line"),
        ("N/A 2\nN/A\n", "N/A 2 appears on lines 1, 2"),
    ],
)
def test_unsuitable_labels_are_refused_with_their_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_labels(written(tmp_path, text), 2)


def test_a_missing_file_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; create it with one label per line"):
        read_labels(tmp_path / "labels.txt", 2)
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(ValueError, match="is not a text file in UTF-8; write one label per line"):
        read_labels(tmp_path / "labels.txt", 2)
