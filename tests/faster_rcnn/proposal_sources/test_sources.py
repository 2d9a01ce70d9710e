"""Sources by their names, in Python and by scripts/propose.py."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.checkpoint import BEST, NAME, save_state
from faster_rcnn.detector.proposals import ProposalLimits
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.proposal_sources.rpn import rpn_regions, uncut_limits
from faster_rcnn.proposal_sources.sliding_window import sliding_windows
from faster_rcnn.proposal_sources.sources import check_source, propose_for
from faster_rcnn.proposal_sources.table import ProposalTable, WithProposals
from tests.faster_rcnn.lively import lively

ROOT = Path(__file__).resolve().parents[3]


def propose(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "propose.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_a_file_is_a_source_of_what_it_holds(tmp_path: Path) -> None:
    dataset = Shapes("val", 3)
    table = propose_for(dataset, "sliding-window", limit=100)
    file = tmp_path / "windows.npz"
    table.save(file)
    again = propose_for(Subset(dataset, 2), str(file), limit=7)
    assert list(again) == ["val/0/0", "val/0/1"]
    np.testing.assert_array_equal(again["val/0/1"].boxes, table["val/0/1"].boxes[:7])
    assert again.made == f"{table.made}; limit 7"
    proposals = WithProposals(dataset, table)[2].proposals
    assert proposals is not None
    np.testing.assert_array_equal(proposals, sliding_windows(*dataset.size(2), 100))


def test_a_file_for_other_images_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "val.npz"
    propose_for(Shapes("val", 2), "sliding-window", limit=100).save(file)
    with pytest.raises(ValueError, match=re.escape(f"{file}: the table of proposals has none for test/0/0 (5 of 5")):
        propose_for(Shapes("test", 5), str(file))


@pytest.mark.parametrize("source", ["", "selective", "rpn:", "windows.mat", "sliding-window:3"])
def test_an_unknown_source_is_answered_with_those_that_there_are(source: str) -> None:
    complaint = f"{source!r} is no source of proposals; there are: sliding-window, selective-search, rpn:RUN, FILE.npz"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        propose_for(Shapes("val", 1), source)


def test_an_rpn_that_was_never_trained_is_no_source_and_the_best_state_is_taken(tmp_path: Path) -> None:
    small = {"resize": ResizeRule(64, 128), "proposals": ProposalLimits(50, 10)}
    untrained, trained = lively("compact", **small), lively("compact", **small)
    with torch.no_grad():
        trained.rpn.bbox_pred.weight *= 2
    save_state(tmp_path / NAME, untrained, "fast-rcnn", 1)
    refusal = r"has trained Fast R-CNN alone, .* name a run of --schedule joint"
    with pytest.raises(ValueError, match=refusal):
        propose_for(Shapes("val", 1), f"rpn:{tmp_path}")
    with pytest.raises(ValueError, match=refusal):
        check_source(f"rpn:{tmp_path}")
    save_state(tmp_path / BEST, trained, "rpn", 1)
    check_source(f"rpn:{tmp_path}")
    table = propose_for(Shapes("val", 1), f"rpn:{tmp_path}", limit=20)
    expected = rpn_regions(trained, Shapes("val", 1), uncut_limits(trained, 20))
    np.testing.assert_array_equal(table["val/0/0"].boxes, expected["val/0/0"].boxes)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/checkpoint\.pt is not there|nowhere is not there"):
        propose_for(Shapes("val", 1), "rpn:nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz is not there"):
        propose_for(Shapes("val", 1), "nowhere.npz")
    with pytest.raises(ValueError, match="a limit of 0 leaves no proposals"):
        propose_for(Shapes("val", 1), "sliding-window", limit=0)


def test_the_command_writes_a_table_and_says_what_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.npz"
    done = propose(
        "--source", "sliding-window", "--split", "val", "--pictures", 3, "--limit", 200, "--seed", 5, "--out", out
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"wrote {re.escape(str(out))}: 3 images, \d+ boxes an image \(\d+ to \d+\), \S+ seconds an image\n",
        done.stdout,
    )
    table = ProposalTable.load(out)
    assert list(table) == ["val/5/0", "val/5/1", "val/5/2"]
    assert table.made.endswith("limit 200; data shapes/val")


def test_a_table_has_the_ending_by_which_it_is_known() -> None:
    done = propose("--source", "sliding-window", "--out", "x")
    assert done.returncode != 0
    assert done.stderr.strip().endswith("--out x does not end in .npz, by which it is known as a table; rename it")
    assert len(done.stderr.strip().splitlines()) == 1
