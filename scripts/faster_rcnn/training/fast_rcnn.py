"""Fast R-CNN by itself: detection in given regions, as a predictor, and the normalisation of its targets.

P  regions of an image.  Boxes are x1, y1, x2, y2.
"""

import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from faster_rcnn.data.dataset import Dataset, Prediction, Sample
from faster_rcnn.detector.boxes import encode
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.detector.roi_head import TargetNormalisation
from faster_rcnn.detector.sampling import ProposalSampling
from faster_rcnn.evaluation import Predictor
from faster_rcnn.prediction import inferring, single


def given_predictor(detector: FasterRCNN) -> Predictor:
    """The detector's head on the regions that a sample carries, one image at a time.

    Raises ValueError for a sample without them.
    """

    def predict(sample: Sample) -> Prediction:
        if sample.proposals is None:
            raise ValueError("the images carry no proposals; open the data set with those of a source")
        one = single(detector, sample)
        assert one.batch.proposals is not None
        regions = one.batch.proposals[0]
        # A detector needs a region to look at: where a source gave none, one that nothing comes of.
        padded = regions if len(regions) else regions.new_tensor([[0.0, 0.0, 1.0, 1.0]])
        count = torch.tensor([len(regions)], device=regions.device)
        with inferring(detector):
            found = detector.detect_given(one.batch.images, one.batch.sizes, padded[None], count)
        real = int(found.number[0])
        scores, labels = found.scores[0, :real].cpu().numpy(), found.labels[0, :real].cpu().numpy()
        return Prediction(one.to_original(found.boxes[:, :real]), scores, labels, sample.proposals)

    return predict


def measure_normalisation(dataset: Dataset, rule: ProposalSampling) -> TargetNormalisation:
    """The mean and deviation of the targets of all foreground regions (Fast R-CNN, section 2.3).

    dataset: its samples carry proposals.  Deltas do not change with an image's scale, so the originals are measured.
    Raises ValueError if there are fewer than two foreground regions.
    """
    targets = []
    for index in tqdm(range(len(dataset)), desc="measuring targets", unit="image", leave=False):
        sample = dataset[index].objects()
        if sample.proposals is None or not len(sample.proposals) or not len(sample.boxes):
            continue
        regions, boxes = torch.from_numpy(sample.proposals), torch.from_numpy(sample.boxes)
        overlap, objects = box_iou(regions, boxes).max(dim=1)
        foreground = overlap >= rule.foreground_iou
        targets.append(encode(boxes[objects[foreground]], regions[foreground]))
    deltas = torch.cat([torch.zeros(0, 4), *targets]).double()
    if len(deltas) < 2:
        raise ValueError(
            "hardly any proposal overlaps an object by half, so there are no targets to measure; take another source"
        )
    std, mean = torch.std_mean(deltas, dim=0)
    return TargetNormalisation(tuple(mean.tolist()), tuple(std.clamp(min=1e-3).tolist()))
