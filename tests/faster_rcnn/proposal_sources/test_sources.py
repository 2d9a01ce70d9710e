"""The selection of a source of proposals by its name."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.subset import Subset
from faster_rcnn.detector.checkpoint import BEST, NAME, save_state
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.rules import ProposalLimits
from faster_rcnn.proposal_sources.rpn import rpn_regions, uncut_limits
from faster_rcnn.proposal_sources.sliding_window import sliding_windows
from faster_rcnn.proposal_sources.sources import check_source, propose_for
from faster_rcnn.proposal_sources.table import WithProposals
from tests.faster_rcnn.lively import lively


def test_the_file_of_a_table_is_a_source_of_its_proposals(tmp_path: Path) -> None:
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


def test_a_table_for_other_images_is_refused_and_its_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "val.npz"
    propose_for(Shapes("val", 2), "sliding-window", limit=100).save(file)
    with pytest.raises(
        ValueError, match=re.escape(f"{file}: the table of proposals has no entry for test/0/0 (5 of 5")
    ):
        propose_for(Shapes("test", 5), str(file))


@pytest.mark.parametrize("source", ["", "selective", "rpn:", "windows.mat", "sliding-window:3"])
def test_an_unknown_source_is_refused_with_the_list_of_sources(source: str) -> None:
    sources = "sliding-window, selective-search, rpn:RUN, FILE.npz"
    complaint = f"{source!r} is not a source of proposals; choose one of: {sources}"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        propose_for(Shapes("val", 1), source)


def test_an_untrained_rpn_is_refused_and_the_best_checkpoint_is_preferred(tmp_path: Path) -> None:
    small = {"resize": ResizeRule(64, 128), "proposals": ProposalLimits(50, 10)}
    untrained, trained = lively("compact", **small), lively("compact", **small)
    with torch.no_grad():
        trained.rpn.bbox_pred.weight *= 2
    save_state(tmp_path / NAME, untrained, "fast-rcnn", 1)
    refusal = r"has trained only Fast R-CNN, .* choose a run with --schedule joint"
    with pytest.raises(ValueError, match=refusal):
        propose_for(Shapes("val", 1), f"rpn:{tmp_path}")
    with pytest.raises(ValueError, match=refusal):
        check_source(f"rpn:{tmp_path}")
    save_state(tmp_path / BEST, trained, "rpn", 1)
    check_source(f"rpn:{tmp_path}")
    table = propose_for(Shapes("val", 1), f"rpn:{tmp_path}", limit=20)
    expected = rpn_regions(trained, Shapes("val", 1), uncut_limits(trained, 20))
    np.testing.assert_array_equal(table["val/0/0"].boxes, expected["val/0/0"].boxes)


def test_a_missing_run_or_file_and_a_limit_of_zero_are_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/checkpoint\.pt does not exist|nowhere does not exist"):
        propose_for(Shapes("val", 1), "rpn:nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz does not exist"):
        propose_for(Shapes("val", 1), "nowhere.npz")
    with pytest.raises(ValueError, match="a limit of 0 leaves no proposals"):
        propose_for(Shapes("val", 1), "sliding-window", limit=0)
