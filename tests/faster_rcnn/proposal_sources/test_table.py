"""Tables of proposals: the file format, the refusal of faulty tables, and data sets with proposals."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faster_rcnn.data.dataset import Sample
from faster_rcnn.data.shapes import Shapes
from faster_rcnn.proposal_sources import table as table_module
from faster_rcnn.proposal_sources.table import ProposalTable, Regions, WithProposals, ranked

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def boxes(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


@st.composite
def some_regions(draw: st.DrawFn) -> Regions:
    number = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    corner, sides = rng.uniform(-10, 500, (number, 2)), rng.uniform(11, 500, (number, 2))
    scores = np.sort(rng.normal(size=number))[::-1]
    return Regions(np.concatenate([corner, corner + sides], axis=1).astype(np.float32), scores.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(regions=st.dictionaries(NAMES, some_regions(), max_size=5), made=NAMES)
def test_a_table_is_the_same_after_saving_and_loading(
    regions: dict[str, Regions], made: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("table") / "table.npz"
    ProposalTable(regions, made).save(file)
    again = ProposalTable.load(file)
    assert (list(again), again.made) == (list(regions), made)
    for name, one in regions.items():
        np.testing.assert_array_equal(again[name].boxes, one.boxes, strict=True)
        np.testing.assert_array_equal(again[name].scores, one.scores, strict=True)
    assert [one.name for one in file.parent.iterdir()] == ["table.npz"]  # no temporary file remains


def test_the_documented_lines_write_a_valid_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    (\w.*)$", table_module.__doc__ or "", re.MULTILINE)
    assert len(lines) == 3
    some = {
        "np": np,
        "names": ["a.jpg", "empty.jpg", "b.jpg"],
        "boxes": [np.array([[0.0, 0, 5, 5], [1, 2, 3, 4]]), np.zeros((0, 4)), np.array([[7.0, 7, 9, 9]])],
        "scores": [np.array([0.9, 0.1]), np.zeros(0), np.array([3.0])],
    }
    exec("\n".join(lines), some)
    read = ProposalTable.load(Path("table.npz"))
    assert list(read) == ["a.jpg", "empty.jpg", "b.jpg"]
    assert read["a.jpg"].boxes.tolist() == [[0, 0, 5, 5], [1, 2, 3, 4]]
    assert read["empty.jpg"].boxes.shape == (0, 4)
    assert read["b.jpg"].scores.tolist() == [3.0]
    assert read.made == "how they were made"


GOOD = {
    "names": np.array(["a.jpg", "b.jpg"]),
    "counts": np.array([2, 1]),
    "boxes": boxes([[0, 0, 5, 5], [1, 2, 3, 4], [7, 7, 9, 9]]),
    "scores": np.array([0.9, 0.1, 0.5], np.float32),
    "made": np.array("by hand"),
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"scores": None, "made": None},
            "lacks scores, made; a table has the arrays names, counts, boxes, scores, made",
        ),
        ({"names": np.array([1, 2])}, "names is int64 [2]; it must be text [images]"),
        ({"names": np.array(["a.jpg", "a.jpg"])}, "names has a.jpg twice"),
        ({"counts": np.array([3])}, "counts is int64 [1]; write one count, 0 or more, for each name"),
        ({"counts": np.array([4, -1])}, "write one count, 0 or more"),
        ({"counts": np.array([2, 2])}, "counts add up to 4, boxes are [3, 4] and scores [3]; write [4, 4] and [4]"),
        ({"boxes": np.zeros((3, 5), np.float32)}, "boxes are [3, 5]"),
        ({"boxes": np.full((3, 4), "x")}, "boxes are <U1 and scores float32; write float32"),
        (
            {"boxes": boxes([[0, 0, 5, 5], [1, 2, np.nan, 4], [7, 7, 9, 9]])},
            "a.jpg: row 1 is [1.0, 2.0, nan, 4.0] with score 0.1",
        ),
        ({"scores": np.array([0.9, 0.1, np.inf], np.float32)}, "b.jpg: row 0 is [7.0, 7.0, 9.0, 9.0] with score inf"),
        ({"boxes": boxes([[0, 0, 5, 5], [1, 2, 3, 4], [7, 7, 7, 9]])}, "b.jpg: row 0 is [7.0, 7.0, 7.0, 9.0]"),
        ({"boxes": boxes([[0, 0, 5, 5], [1, 2, 3, 4], [-7, 7, -1, 9]])}, "but the box is left of or above every image"),
        (
            {"scores": np.array([0.25, 0.75, 0.5], np.float32)},
            "a.jpg: row 1 is [1.0, 2.0, 3.0, 4.0] with score 0.75, but the score is higher than the one before it",
        ),
    ],
)
def test_a_faulty_table_is_refused_with_the_place_and_the_remedy(
    change: dict[str, np.ndarray | None], complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "faulty.npz"
    np.savez(file, **{name: array for name, array in (GOOD | change).items() if array is not None})
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        ProposalTable.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_an_archive_is_refused_however_it_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "table.npz"
    with pytest.raises(FileNotFoundError, match=r"table\.npz does not exist"):
        ProposalTable.load(file)
    ProposalTable({"a": ranked(boxes([[0, 0, 5, 5]]))}, "by hand").save(file)
    whole = file.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **GOOD | {"boxes": np.array([[1, 2], [3]], object)})
    for content in (
        b"",
        b"not an archive",
        whole[: len(whole) // 2],
        (tmp_path / "array.npy").read_bytes(),
        pickled.read_bytes(),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="not a NumPy archive"):
            ProposalTable.load(file)


def test_a_table_refuses_invalid_boxes() -> None:
    with pytest.raises(ValueError, match=re.escape("a.jpg: boxes are float64 [1, 4]")):
        ProposalTable({"a.jpg": Regions(np.ones((1, 4)), np.ones(1, np.float32))}, "by hand")


class TwoImages:
    """A data set of two images without objects, 40 × 30 and 20 × 10 pixels (width × height)."""

    labels = ("thing",)
    sizes = ((30, 40), (10, 20))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((*self.sizes[index], 3), np.uint8), boxes([]), np.zeros(0, np.int64))

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def name(self, index: int) -> str:
        return ("large", "small")[index]


def test_samples_carry_the_best_proposals_clipped_to_the_image() -> None:
    regions = boxes([[-5, -5, 50, 50], [40, 0, 45, 9], [1, 2, 3, 4], [5, 25, 9, 35], [0, 0, 1, 1]])
    table = ProposalTable({"large": ranked(regions), "small": ranked(boxes([]))}, "by hand")
    dataset = WithProposals(TwoImages(), table, limit=3)
    # The first box is clipped to 40 × 30, the second begins where the image ends, and the fifth exceeds the limit of 3.
    proposals = dataset[0].proposals
    assert proposals is not None
    assert proposals.tolist() == [[0, 0, 40, 30], [1, 2, 3, 4], [5, 25, 9, 30]]
    assert proposals.dtype == np.float32
    none = dataset[1].proposals
    assert none is not None
    assert none.shape == (0, 4)
    assert (len(dataset), dataset.labels, dataset.size(1), dataset.name(1)) == (2, ("thing",), (10, 20), "small")


def test_adding_proposals_changes_nothing_else_in_a_data_set() -> None:
    shapes = Shapes("val", 3)
    table = ProposalTable({shapes.name(index): ranked(boxes([[0, 0, 50, 50]])) for index in range(3)}, "by hand")
    dataset = WithProposals(shapes, table)
    for index in range(3):
        plain, sample = shapes[index], dataset[index]
        np.testing.assert_array_equal(sample.image, plain.image)
        np.testing.assert_array_equal(sample.boxes, plain.boxes)
        assert sample.objects().proposals is sample.proposals


def test_an_image_missing_from_the_table_is_named_at_once() -> None:
    table = ProposalTable({"large": ranked(boxes([[0, 0, 5, 5]]))}, "by hand")
    with pytest.raises(
        ValueError, match=r"no entry for small \(1 of 2 images are missing; it has 1, the first is large"
    ):
        WithProposals(TwoImages(), table)
    with pytest.raises(
        ValueError, match=r"no entry for large \(2 of 2 images are missing; it has 0, the first is none"
    ):
        WithProposals(TwoImages(), ProposalTable({}, "by hand"))


def test_boxes_that_all_lie_outside_their_image_are_refused() -> None:
    table = {"large": ranked(boxes([[0, 0, 5, 5]])), "small": ranked(boxes([[400, 300, 500, 400]]))}
    with pytest.raises(ValueError, match=r"has 1 boxes for small, all outside its 20×10 pixels"):
        WithProposals(TwoImages(), ProposalTable(table, "by hand"))
