"""Any `torchvision.models.detection.FasterRCNN` on a canvas, as if each image were alone: torchvision's own layers and
parameters, and its answer for that image by itself, at any batch size and on any canvas.

N  images;  H, W  canvas;  C  classes without background;  K  candidates;  P  proposals;  M  regions in all.
Images are uint8 [N, H, W, 3], RGB, each at the top left of its canvas; sizes are int64 [N, 2], height and width.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from faster_rcnn.detector.boxes import MAX_LOG_GROWTH, clip_to_sizes, decode, sides_at_least
from faster_rcnn.detector.detector import DetectorOutput, dtype_of
from faster_rcnn.detector.operators import EXCLUDED, PADDING, nms, quotient, take_rows, top_k
from faster_rcnn.detector.padded_rows import linear_of_channels_last, real_rows
from faster_rcnn.detector.padding import inside
from faster_rcnn.detector.proposals import Proposals
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.roi_head import DetectionLimits, TargetNormalisation, detect
from faster_rcnn.torchvision_adapter.extents import AsIfAlone, Extent, Unsupported
from faster_rcnn.torchvision_adapter.multi_scale_roi_align import Sampling, align_on_all_maps, align_on_one_map

# Class scores that enter the last suppression at most, the best first. torchvision has no such bound. Its own threshold
# of 0.05 and 1000 proposals stay below it; with lower ones it matters where a hundred survivors hide all the others.
CANDIDATES = 20_000
# A map of at most so many cells is pooled from by matrix products; beyond, ONNX's operator is faster on a CPU.
SMALL_MAP = 1024
PROBE = 256  # pixels a side of the canvas on which the strides of the maps are read off


class Level(NamedTuple):
    """A feature map [N, C', h, w] and what the RPN says of it: logits [N, k, h, w], deltas [N, 4k, h, w]."""

    features: Tensor
    extent: Extent
    logits: Tensor
    deltas: Tensor


class TorchvisionDetector(nn.Module):
    """`forward` is what is exported. The model is put into eval mode.

    Raises Unsupported for a model that cannot be told for an image alone.

    stride: what the sides of a canvas are multiples of;  classes: without background.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: TorchvisionFasterRCNN) -> None:
        super().__init__()
        _check(model)
        self.model = model.eval()
        transform = model.transform
        self.stride: int = transform.size_divisible
        self.resize = ResizeRule(transform.min_size[-1], transform.max_size)
        self.score_floor: float = model.roi_heads.score_thresh
        self.register_buffer("mean", torch.tensor(transform.image_mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(transform.image_std).view(3, 1, 1) * 255, persistent=False)
        self._pooled, self.sampling, self.classes = self._probe()

    def forward(self, images: Tensor, sizes: Tensor) -> DetectorOutput:
        """Detections and proposals of a batch."""
        levels = self._levels(images, sizes)
        proposals = self._propose(list(levels.values()), sizes)
        scores, deltas = self._classify([levels[name] for name in self._pooled], proposals)
        wx, wy, ww, wh = self.model.roi_heads.box_coder.weights
        found = detect(
            scores, deltas, proposals.boxes, proposals.number, sizes, self._limits(),
            TargetNormalisation(stds=(1 / wx, 1 / wy, 1 / ww, 1 / wh)),
        )  # fmt: skip
        return DetectorOutput(*found, *proposals)

    def _levels(self, images: Tensor, sizes: Tensor) -> dict[str, Level]:
        """The backbone's feature maps by torchvision's names, finest first, with the RPN's outputs on each."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        here = inside(sizes, 1, pixels.shape[2], pixels.shape[3])
        pixels = torch.where(here[:, None], pixels, torch.zeros_like(pixels[:, :, :1, :1]))
        tight = quotient(sizes + (self.stride - 1), self.stride) * self.stride
        extent = Extent(tight, (pixels.shape[2], pixels.shape[3]), (1, 1), True, self.stride)
        with AsIfAlone() as alone:
            pixels = pixels.to(dtype_of(self.model.backbone))
            features = self.model.backbone(alone.track(pixels, extent, blank=True))
            if isinstance(features, Tensor):
                features = {"0": features}
            logits, deltas = self.model.rpn.head(list(features.values()))
            return {
                name: Level(one, alone.extent_of(one), logits[place], deltas[place])
                for place, (name, one) in enumerate(features.items())
            }

    def _propose(self, levels: list[Level], sizes: Tensor) -> Proposals:
        """torchvision's filter_proposals: the best of each map, decoded, clipped, suppressed on each map by itself,
        and the best of what is left."""
        rpn = self.model.rpn
        K, P = rpn._pre_nms_top_n["testing"], rpn._post_nms_top_n["testing"]
        found = [self._candidates(number, level, sizes, K) for number, level in enumerate(levels)]
        boxes, objectness, running = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
        # the candidates stand in the order of their logits, which their probabilities near 1 no longer tell apart
        ranks = torch.arange(K, 0, -1, device=boxes.device).to(boxes.dtype)
        ranks = torch.where(running, ranks, torch.full_like(objectness, EXCLUDED))
        left = nms(boxes.flatten(0, 1), ranks.flatten(0, 1), rpn.nms_thresh, P).reshape(boxes.shape[0], -1)
        scores = torch.where(left > 0, objectness.flatten(1), torch.full_like(left, EXCLUDED))
        scores, places = top_k(scores, P)
        kept = scores >= 0
        best = take_rows(boxes.flatten(1, 2), places)
        return Proposals(
            kept.to(torch.int64).sum(dim=1),
            torch.where(kept[..., None], best, torch.zeros_like(best[:, :1])),
            scores.clamp(min=0),
        )

    def _candidates(self, number: int, level: Level, sizes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best `count` anchors of a map: boxes [N, K, 4], objectness [N, K], and which are in the running."""
        rpn = self.model.rpn
        N, k = level.logits.shape[:2]
        logits = _to_18_bits(level.logits.permute(0, 2, 3, 1).reshape(N, -1).to(torch.float32))
        here = level.extent.inside[:, 0, :, :, None].expand(-1, -1, -1, k).flatten(1)
        logits, places = top_k(torch.where(here, logits, torch.full_like(logits, PADDING)), count)
        deltas = level.deltas.unflatten(1, (k, 4)).permute(0, 3, 4, 1, 2).reshape(N, -1, 4)
        deltas = take_rows(deltas, places).to(torch.float32) / deltas.new_tensor(rpn.box_coder.weights).float()
        boxes = clip_to_sizes(decode(deltas, self._anchors(number, level, places)), sizes)
        objectness = torch.sigmoid(logits)
        running = (logits > PADDING) & sides_at_least(boxes, rpn.min_size) & (objectness >= rpn.score_thresh)
        return boxes, objectness, running

    def _anchors(self, number: int, level: Level, places: Tensor) -> Tensor:
        """The anchors [N, K, 4] at `places` [N, K]: torchvision sets them off by whole pixels from a cell's corner, by
        as many as an image's height and width on its tight canvas hold cells of the map."""
        cell = self.model.rpn.anchor_generator.cell_anchors[number].to(places.device, torch.float32)
        k, w = level.logits.shape[1], level.logits.shape[3]
        location = quotient(places, k)
        row = quotient(location, w)
        column = location - row * w
        if level.extent.whole():
            y, x = (row * level.extent.stride[0], column * level.extent.stride[1])
        else:
            tight = level.extent.of_image
            steps = torch.div(tight, level.extent.cells.clamp(min=1), rounding_mode="trunc")
            y, x = row * steps[:, 0:1], column * steps[:, 1:2]
        return cell[places - location * k] + torch.stack([x, y, x, y], dim=2).to(torch.float32)

    def _classify(self, pooled: list[Level], proposals: Proposals) -> tuple[Tensor, Tensor]:
        """The head's class scores [N, P, C + 1] and deltas [N, P, C, 4]."""
        N, P = proposals.boxes.shape[:2]
        rows, back = real_rows(proposals.number, P)
        maps = pooled[: self.sampling.maps]
        if len(maps) == 1 and self._small and self.sampling.ratio > 0:
            on_map = align_on_one_map(maps[0].features, proposals.boxes, maps[0].extent.cells, self.sampling)
            scores, deltas = self._head(torch.index_select(on_map.flatten(0, 1), 0, rows), channels_last=True)
        else:
            regions = align_on_all_maps(
                [one.features.to(torch.float32) for one in maps],  # coordinates are as exact as what they point into
                [one.extent.cells for one in maps],
                torch.index_select(proposals.boxes.reshape(N * P, 4), 0, rows),
                quotient(rows, P),
                self.sampling,
            )
            scores, deltas = self._head(regions)
        deltas = deltas.unflatten(1, (self.classes + 1, 4))[:, 1:].flatten(1)
        back = back.reshape(-1)
        scores, deltas = torch.index_select(scores, 0, back), torch.index_select(deltas, 0, back)
        return scores.reshape(N, P, -1), deltas.reshape(N, P, self.classes, 4)

    def _head(self, regions: Tensor, channels_last: bool = False) -> tuple[Tensor, Tensor]:
        """Regions [M, C', S, T], or [M, S, T, C'], to class scores [M, C + 1] and deltas [M, 4 (C + 1)], float32."""
        heads = self.model.roi_heads
        regions = regions.to(dtype_of(heads.box_head))
        if channels_last and type(heads.box_head) is TwoMLPHead:
            hidden = F.relu(linear_of_channels_last(heads.box_head.fc6, regions))
            hidden = F.relu(heads.box_head.fc7(hidden))
        else:
            hidden = heads.box_head(regions.permute(0, 3, 1, 2) if channels_last else regions)
        scores, deltas = heads.box_predictor(hidden.to(dtype_of(heads.box_predictor)))
        return scores.to(torch.float32), deltas.to(torch.float32)

    @property
    def feature_layers(self) -> list[nn.Module]:
        """The layers that a graph of lower precision has in float16."""
        return [self.model.backbone, self.model.rpn.head, self.model.roi_heads.box_head]

    @property
    def _small(self) -> bool:
        """Whether the map that regions are pooled from is small on every canvas."""
        cells = self.resize.max_size / self.sampling.strides[0] * self.resize.min_size / self.sampling.strides[0]
        return cells <= SMALL_MAP

    def _limits(self) -> DetectionLimits:
        heads = self.model.roi_heads
        P = self.model.rpn._post_nms_top_n["testing"]
        candidates = CANDIDATES
        if heads.score_thresh > 0:  # a region's probabilities sum to 1: so many classes at most pass the threshold
            candidates = min(candidates, P * (math.ceil(1 / heads.score_thresh) - 1))
        return DetectionLimits(heads.detections_per_img, max(1, candidates), heads.score_thresh, heads.nms_thresh)

    @torch.no_grad()
    def _probe(self) -> tuple[list[str], Sampling, int]:
        """Runs the layers once: the names of the maps that are pooled from, how, and the number of classes."""
        side = math.ceil(PROBE / self.stride) * self.stride
        device = next(self.model.parameters()).device
        images = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
        levels = self._levels(images, torch.tensor([[side, side]], device=device))
        pool = self.model.roi_heads.box_roi_pool
        names = [name for name in levels if name in pool.featmap_names]
        if not names:
            raise Unsupported(f"box_roi_pool wants maps {pool.featmap_names}, the backbone has {list(levels)}")
        anchored = len(self.model.rpn.anchor_generator.sizes)
        if len(levels) != anchored:
            raise Unsupported(f"the backbone has {len(levels)} maps, the anchor generator has sizes for {anchored}")
        # torchvision takes a map's scale for the nearest power of two
        strides = tuple(2 ** round(math.log2(side / levels[name].features.shape[2])) for name in names)
        if pool.scales is not None:  # the model has run before, and keeps what it then took them for
            strides = tuple(max(1, round(1 / scale)) for scale in pool.scales)
        if list(strides) != sorted(strides):
            raise Unsupported(f"box_roi_pool takes maps of strides {strides}; they must come finest first")
        S, T = pool.output_size
        sampling = Sampling((S, T), max(0, pool.sampling_ratio), strides, pool.canonical_scale, pool.canonical_level)
        channels = levels[names[0]].features.shape[1]
        scores, deltas = self._head(torch.zeros(1, channels, S, T, device=device))
        if deltas.shape[1] != 4 * scores.shape[1]:
            raise Unsupported(f"box_predictor gives {deltas.shape[1]} deltas for {scores.shape[1]} classes, not 4 each")
        if scores.shape[1] < 2:
            raise Unsupported("box_predictor knows background alone")
        return names, sampling, scores.shape[1] - 1

    @torch.no_grad()
    def alone(self, image: np.ndarray) -> DetectorOutput:
        """torchvision's own answer for one image, uint8 [H, W, 3], not resized; arrays without the batch dimension.

        Labels are numbered from 0 without background and rows are zero-padded, as in the graph.
        """
        model = self.model
        pool, transform = model.roi_heads.box_roi_pool, model.transform
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).to(torch.float32) / 255
        batch = transform.batch_images([transform.normalize(pixels)], transform.size_divisible)
        images = ImageList(batch, [(image.shape[0], image.shape[1])])
        features = model.backbone(batch)
        features = {"0": features} if isinstance(features, Tensor) else features
        scores: list[Tensor] = []
        choose = model.rpn.filter_proposals

        def remember(*args: Any) -> Any:
            boxes, of_boxes = choose(*args)
            scores.extend(of_boxes)
            return boxes, of_boxes

        cached = pool.scales, pool.map_levels
        # torchvision derives both from the first image it sees, and keeps them; a small one would spoil them
        strides = self.sampling.strides
        pool.scales = [1 / stride for stride in strides]
        octaves = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
        pool.map_levels = initLevelMapper(*octaves, pool.canonical_scale, pool.canonical_level)
        model.rpn.filter_proposals = remember
        try:
            proposals, _ = model.rpn(images, features)
            found = model.roi_heads(features, proposals, images.image_sizes)[0][0]
        finally:
            del model.rpn.filter_proposals
            pool.scales, pool.map_levels = cached
        D, P = model.roi_heads.detections_per_img, model.rpn._post_nms_top_n["testing"]
        arrays: list[Any] = [
            np.int64(len(found["boxes"])),
            *(_rows(values, D) for values in (found["boxes"], found["scores"], found["labels"] - 1)),
            np.int64(len(proposals[0])),
            *(_rows(values, P) for values in (proposals[0], scores[0])),
        ]
        return DetectorOutput(*arrays)


def _rows(values: Tensor, count: int) -> np.ndarray:
    """`values` zero-padded to `count` rows."""
    padded = values.new_zeros((count, *values.shape[1:]))
    padded[: len(values)] = values
    return padded.numpy()


def _to_18_bits(logits: Tensor) -> Tensor:
    """`logits` with 18 of their 24 significant bits.

    Two runtimes, and one on two canvases, differ in the last bits, and these bits would rank the anchors of a blank
    image, where thousands are equal.
    """
    spread = logits * 65  # 2⁶ + 1: what is added and taken away again pushes six bits out (Veltkamp's splitting)
    return spread - (spread - logits)


def _check(model: Any) -> None:
    if not isinstance(model, TorchvisionFasterRCNN):
        raise Unsupported(f"{type(model).__name__} is no torchvision.models.detection.FasterRCNN")
    heads, rpn = model.roi_heads, model.rpn
    if heads.has_mask() or heads.has_keypoint():
        raise Unsupported(f"{type(model).__name__} also finds masks or keypoints, for which the graph has no output")
    if type(heads.box_roi_pool) is not MultiScaleRoIAlign:
        raise Unsupported(f"box_roi_pool is {type(heads.box_roi_pool).__name__}, not MultiScaleRoIAlign")
    generator = type(rpn.anchor_generator)
    if generator.forward is not AnchorGenerator.forward or generator.grid_anchors is not AnchorGenerator.grid_anchors:
        raise Unsupported(f"the anchors come from {generator.__name__}, not from torchvision's AnchorGenerator")
    if any(not math.isclose(one.box_coder.bbox_xform_clip, MAX_LOG_GROWTH) for one in (heads, rpn)):
        raise Unsupported(f"a box_coder's bbox_xform_clip is not torchvision's {MAX_LOG_GROWTH:.4f}")
