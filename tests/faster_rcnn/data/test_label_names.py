from pathlib import Path

import numpy as np
import pytest

from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.label_names import distinct, read_labels


def written(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"


def test_a_label_a_line_and_empty_lines_at_the_end(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, "red cell\n Katze \nпёс\n\n  \n"), 3) == ("red cell", "Katze", "пёс")
    assert read_labels(written(tmp_path, "\ufeffcat\r\ndog"), 2) == ("cat", "dog")  # as some editors write it


def test_numbers_without_a_class_are_told_apart() -> None:
    assert distinct(["person", "N/A", "hat", "N/A"], "COCO") == ("person", "N/A 2", "hat", "N/A 4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("cat\n", "has 1 labels, the detector 2 classes without background"),
        ("cat\ndog\nhen\n", "has 3 labels, the detector 2 classes"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ncat\n", r"cat stands on lines 1, 2; give each class a name of its own"),
        ("__background__\ncat\ndog\n", "line 1 is __background__, which is no object; take it out"),
        ("N/A 2\nN/A\n", "N/A 2 stands on lines 1, 2"),
    ],
)
def test_labels_that_do_not_fit_are_told_by_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_labels(written(tmp_path, text), 2)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not there; write one label a line into it"):
        read_labels(tmp_path / "labels.txt", 2)
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(ValueError, match="is not a text file in UTF-8; write one label a line"):
        read_labels(tmp_path / "labels.txt", 2)


class Two:
    """An image with a dog and a cat."""

    labels: tuple[str, ...] = ("cat", "dog")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 6, 3), np.uint8), np.array([[0, 0, 2, 2], [1, 1, 3, 3]]), np.array([1, 0]))

    def size(self, index: int) -> tuple[int, int]:
        return 4, 6

    def name(self, index: int) -> str:
        return "two"


def test_data_is_numbered_as_a_detector_that_knows_more() -> None:
    data = renumber(Two(), ("dog", "N/A 2", "hen", "cat"), "it")
    assert data.labels == ("dog", "N/A 2", "hen", "cat")
    assert data[0].labels.tolist() == [0, 3]
    assert (len(data), data.size(0), data.name(0)) == (1, (4, 6), "two")


def test_data_that_is_numbered_alike_is_left_as_it_is() -> None:
    data = Two()
    assert renumber(data, ("cat", "dog"), "it") is data


def test_a_class_that_the_detector_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="classes that it does not know: dog; take other data"):
        renumber(Two(), ("cat", "hen"), "it")
