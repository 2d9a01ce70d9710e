"""Fast R-CNN on given regions: what it looks at, in which pixels, and the normalisation of its targets."""

import numpy as np
import pytest
import torch

from faster_rcnn.data.dataset import Sample
from faster_rcnn.detector.roi_head import TargetNormalisation
from faster_rcnn.detector.sampling import ProposalSampling
from faster_rcnn.evaluation import torch_predictor
from faster_rcnn.training.fast_rcnn import given_predictor, measure_normalisation
from tests.faster_rcnn.lively import lively


def picture(height: int = 301, width: int = 517) -> Sample:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


class Images:
    labels = ("thing",)

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.samples[index].image.shape[0], self.samples[index].image.shape[1]

    def name(self, index: int) -> str:
        return str(index)


def test_a_detectors_own_proposals_given_back_lead_to_its_own_detections() -> None:
    detector, sample = lively("compact"), picture()
    whole = torch_predictor(detector)(sample)
    assert len(whole.boxes) > 5
    assert whole.proposals is not None
    again = given_predictor(detector)(Sample(sample.image, sample.boxes, sample.labels, proposals=whole.proposals))
    assert again.labels.tolist() == whole.labels.tolist()
    np.testing.assert_allclose(again.scores, whole.scores, atol=1e-4)
    np.testing.assert_allclose(again.boxes, whole.boxes, atol=0.1)  # the proposals went to the original and back


def test_what_is_found_lies_near_the_given_regions_in_original_pixels() -> None:
    regions = np.array([[400, 200, 500, 290]], np.float32)
    found = given_predictor(lively("compact"))(Sample(**{**vars(picture()), "proposals": regions}))
    assert len(found.boxes) > 0
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert (np.abs(centres - [450, 245]) < [150, 140]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [517, 301, 517, 301]).all()


def test_an_image_without_a_region_has_no_detection_and_one_without_a_source_says_so() -> None:
    detector = lively("compact")
    nothing = given_predictor(detector)(Sample(**{**vars(picture()), "proposals": np.zeros((0, 4), np.float32)}))
    assert nothing.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="carry no proposals"):
        given_predictor(detector)(picture())


def test_targets_are_measured_as_fast_rcnn_says() -> None:
    """Regions 10 × 10 around objects of 10 × 10 moved by ±1 in x: dx = ±0.1, the rest 0; far regions do not count."""
    image = np.zeros((100, 100, 3), np.uint8)
    objects = np.array([[20, 20, 30, 30], [60, 60, 70, 70]], np.float32)
    regions = np.array([[19, 20, 29, 30], [61, 60, 71, 70], [0, 0, 5, 5]], np.float32)
    sample = Sample(image, objects, np.zeros(2, np.int64), proposals=regions)
    measured = measure_normalisation(Images(sample), ProposalSampling())
    assert measured.means == pytest.approx((0, 0, 0, 0))
    assert measured.stds[0] == pytest.approx(0.1 * 2**0.5)  # of two values, ±0.1, divided by n - 1
    assert measured.stds[1:] == (0.001, 0.001, 0.001)  # nothing is divided by zero
    deltas = torch.tensor([[0.1, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(measured.undo(measured.apply(deltas)), deltas)


def test_a_source_that_meets_no_object_leaves_nothing_to_measure() -> None:
    sample = Sample(**{**vars(picture()), "proposals": np.array([[0, 0, 9, 9]], np.float32)})
    with pytest.raises(ValueError, match="no targets to measure; take another source"):
        measure_normalisation(Images(sample), ProposalSampling())


def test_the_reference_codes_estimates_are_the_default() -> None:
    rule = TargetNormalisation()
    assert rule.apply(torch.tensor([0.1, 0.2, 0.2, 0.4])).tolist() == pytest.approx([1, 2, 1, 2])
