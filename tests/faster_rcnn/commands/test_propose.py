"""`faster-rcnn propose`: the file that it writes, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from faster_rcnn.proposal_sources.table import ProposalTable
from tests.faster_rcnn.commands.conftest import Done

Run = Callable[..., Done]


def test_the_command_writes_a_file_and_prints_a_summary(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "new" / "table.npz"
    images = ("--data", "shapes", "--split", "val", "--limit-images", 3, "--seed", 5)
    done = run("propose", "--source", "sliding-window", *images, "--limit", 200, "--out", out)
    assert done.code == 0, done.err
    assert re.fullmatch(
        rf"wrote {re.escape(str(out))}: 3 images, \d+ boxes per image \(\d+ to \d+\), \S+ seconds per image\n",
        done.out,
    )
    table = ProposalTable.load(out)
    assert list(table) == ["val/5/0", "val/5/1", "val/5/2"]
    assert table.made.endswith("limit 200; data shapes/val")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--source", "sliding-window", "--data", "shapes", "--out", "x"), "--out x must end in .npz"),
        (("--source", "sliding-window", "--out", "x.npz"), "--data is missing; name annotated images"),
        (("--source", "sliding-window", "--data", "shapes"), "--out is missing; name the file to write"),
        (("--data", "shapes", "--out", "x.npz"), "--source is missing; name one: sliding-window"),
        (
            ("--source", "magic", "--data", "shapes", "--out", "x.npz"),
            "is not a source of proposals; choose one of: sliding-window",
        ),
        (("--source", "sliding-window", "--limits", "3"), "unknown option --limits; did you mean --limit?"),
    ],
)
def test_a_mistake_prints_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert complaint in run("propose", *options).refusal
    assert not list(tmp_path.iterdir())
