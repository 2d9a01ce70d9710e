"""Runs any `torchvision.models.detection.FasterRCNN` on batches of canvases.

It uses torchvision's own layers and parameters. Its answer for an image is torchvision's answer for that image alone,
at any batch size and on any canvas.

N  images;  H, W  canvas;  C  classes without background;  K  candidates per map;  P  proposals;  M  regions in all.
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
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from faster_rcnn.detector.boxes import MAX_LOG_GROWTH, clip_to_sizes, decode, sides_at_least
from faster_rcnn.detector.detector import DetectorOutput, dtype_of
from faster_rcnn.detector.operators import EXCLUDED, PADDING, Span, nms, probabilities_above, quotient, take_rows, top_k
from faster_rcnn.detector.padded_rows import linear_of_channels_last, real_rows
from faster_rcnn.detector.padding import inside
from faster_rcnn.detector.proposals import Proposals
from faster_rcnn.detector.resize import ResizeRule
from faster_rcnn.detector.roi_head import detect
from faster_rcnn.detector.rules import DetectionLimits, TargetNormalisation
from faster_rcnn.torchvision_adapter.extents import AsIfAlone, Extent, Unsupported
from faster_rcnn.torchvision_adapter.internals import concat_box_prediction_layers, fixed_scales
from faster_rcnn.torchvision_adapter.multi_scale_roi_align import Sampling, align_on_all_maps, align_on_one_map
from service.images.depth import WHITE

# At most this many class scores, the best ones, enter the final NMS. torchvision has no such bound. With its own
# threshold of 0.05 and 1000 proposals there are never more. With a lower threshold the bound matters only where the
# best hundred boxes suppress all the others.
CANDIDATES = 20_000
# Regions are pooled by matrix products from maps of up to this many cells; from larger maps ONNX's operator is faster
# on a CPU.
SMALL_MAP = 1024
# Logits of 18 significant bits. Below 2⁻²⁸ all have the same float32 probability, 0.5; above 2¹⁶ all have 0 or 1.
LOGITS = Span(low=-28, high=16, digits=18)
PROBE = 256  # side in pixels of the canvas on which the strides of the maps are measured


class Level(NamedTuple):
    """A feature map [N, C', h, w] and the RPN's outputs for it: logits [N, k, h, w], deltas [N, 4k, h, w]."""

    features: Tensor
    extent: Extent
    logits: Tensor
    deltas: Tensor


class TorchvisionDetector(nn.Module):
    """A torchvision model whose `forward` can be exported. The model is put into eval mode.

    stride: the sides of a canvas are multiples of it, in pixels;  classes: without background;  score_floor: the score
    that a detection must pass;  candidates, proposals: at most K per map before the RPN's suppression, P after it.
    Raises Unsupported if the model's answer for an image would depend on the rest of its batch or canvas.
    """

    labels = None  # torchvision's models number their classes
    antialias = False  # as torchvision resizes
    white = WHITE  # of images with 16 bits; torchvision leaves their conversion to its users
    stable_ranking = False  # equal scores are ranked by the last bits, which differ between runtimes
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
        self.candidates: int = model.rpn.pre_nms_top_n()  # in eval mode: of inference
        self.proposals: int = model.rpn.post_nms_top_n()
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
        return DetectorOutput(*found[:4], *proposals, found.left_out)

    def _levels(self, images: Tensor, sizes: Tensor) -> dict[str, Level]:
        """The backbone's feature maps by torchvision's names, finest first, with the RPN's outputs on each."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        here = inside(sizes, 1, pixels.shape[2], pixels.shape[3])
        pixels = torch.where(here[:, None], pixels, torch.zeros_like(pixels[:, :, :1, :1]))
        tight = quotient(sizes + (self.stride - 1), self.stride) * self.stride
        extent = Extent(tight, (pixels.shape[2], pixels.shape[3]), (1, 1), True, self.stride)
        with AsIfAlone() as alone:
            pixels = pixels.to(dtype_of(self.model.backbone))
            features = _named(self.model.backbone(alone.track(pixels, extent, blank=True)))
            logits, deltas = self.model.rpn.head(list(features.values()))
            return {
                name: Level(one, alone.extent_of(one), logits[place], deltas[place])
                for place, (name, one) in enumerate(features.items())
            }

    def _propose(self, levels: list[Level], sizes: Tensor) -> Proposals:
        """The counterpart of torchvision's `filter_proposals`.

        Decodes and clips the best candidates of each map, applies NMS to each map separately, and keeps the best.
        """
        rpn = self.model.rpn
        K, P = self.candidates, self.proposals
        found = [self._candidates(number, level, sizes, K) for number, level in enumerate(levels)]
        boxes, objectness, running = (torch.stack(values, dim=1) for values in zip(*found, strict=True))
        # ranked by place: candidates are in the order of their logits, and near 1 their probabilities are equal
        ranks = torch.arange(K, 0, -1, device=boxes.device).to(boxes.dtype)
        ranks = torch.where(running, ranks, torch.full_like(objectness, EXCLUDED))
        left = nms(boxes.flatten(0, 1), ranks.flatten(0, 1), rpn.nms_thresh, P).reshape(boxes.shape[0], -1)
        scores = torch.where(left > 0, objectness.flatten(1), torch.full_like(left, EXCLUDED))
        scores, places = top_k(scores, P, probabilities_above(rpn.score_thresh))
        kept = scores >= 0
        best = take_rows(boxes.flatten(1, 2), places)
        return Proposals(
            kept.to(torch.int64).sum(dim=1),
            torch.where(kept[..., None], best, torch.zeros_like(best[:, :1])),
            scores.clamp(min=0),
        )

    def _candidates(self, number: int, level: Level, sizes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best `count` anchors of a map: boxes [N, K, 4], objectness [N, K], and which may become proposals."""
        rpn = self.model.rpn
        N, k = level.logits.shape[:2]
        logits = _to_18_bits(level.logits.permute(0, 2, 3, 1).reshape(N, -1).to(torch.float32))
        here = level.extent.inside[:, 0, :, :, None].expand(-1, -1, -1, k).flatten(1)
        logits, places = top_k(torch.where(here, logits, torch.full_like(logits, PADDING)), count, LOGITS)
        deltas = level.deltas.unflatten(1, (k, 4)).permute(0, 3, 4, 1, 2).reshape(N, -1, 4)
        deltas = take_rows(deltas, places).to(torch.float32) / deltas.new_tensor(rpn.box_coder.weights).float()
        boxes = clip_to_sizes(decode(deltas, self._anchors(number, level, places)), sizes)
        objectness = torch.sigmoid(logits)
        running = (logits > PADDING) & sides_at_least(boxes, rpn.min_size) & (objectness >= rpn.score_thresh)
        return boxes, objectness, running

    def _anchors(self, number: int, level: Level, places: Tensor) -> Tensor:
        """The anchors [N, K, 4] at `places` [N, K].

        torchvision spaces them by whole pixels: the tight canvas's side divided by the map's cells, rounded down.
        """
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
        rows = real_rows(proposals.number, P)
        maps = pooled[: self.sampling.maps]
        if len(maps) == 1 and self._small and self.sampling.ratio > 0:
            on_map = align_on_one_map(maps[0].features, proposals.boxes, maps[0].extent.cells, self.sampling)
            scores, deltas = self._head(rows.take(on_map.flatten(0, 1)), channels_last=True)
        else:
            regions = align_on_all_maps(
                [one.features.to(torch.float32) for one in maps],  # RoIAlign computes coordinates in the maps' type
                [one.extent.cells for one in maps],
                rows.take(proposals.boxes.reshape(N * P, 4)),
                rows.images,
                self.sampling,
            )
            scores, deltas = self._head(regions)
        deltas = deltas.unflatten(1, (self.classes + 1, 4))[:, 1:].flatten(1)
        scores, deltas = rows.put_back(scores, deltas)
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

    def for_export(self, cpu_only: bool) -> "TorchvisionDetector":  # noqa: ARG002  required by Exportable
        """Returns itself: RoIAlign is exported in the same form for every provider."""
        return self

    def describe(self) -> dict[str, Any]:
        """The settings, besides the weights, that determine its answers, by torchvision's names, for `model.json`."""
        rpn, heads, transform = self.model.rpn, self.model.roi_heads, self.model.transform
        anchors = rpn.anchor_generator
        return {
            "min_size": transform.min_size[-1],
            "max_size": transform.max_size,
            "image_mean": list(transform.image_mean),
            "image_std": list(transform.image_std),
            "anchor_sizes": [list(sizes) for sizes in anchors.sizes],
            "aspect_ratios": [list(ratios) for ratios in anchors.aspect_ratios],
            "rpn_pre_nms_top_n": self.candidates,
            "rpn_post_nms_top_n": self.proposals,
            "rpn_nms_thresh": rpn.nms_thresh,
            "rpn_score_thresh": rpn.score_thresh,
            "box_score_thresh": heads.score_thresh,
            "box_nms_thresh": heads.nms_thresh,
            "box_detections_per_img": heads.detections_per_img,
            "bbox_reg_weights": list(heads.box_coder.weights),
        }

    @property
    def _small(self) -> bool:
        """Whether the map that regions are pooled from is small on every canvas."""
        cells = self.resize.max_size / self.sampling.strides[0] * self.resize.min_size / self.sampling.strides[0]
        return cells <= SMALL_MAP

    def _limits(self) -> DetectionLimits:
        heads = self.model.roi_heads
        candidates = CANDIDATES
        if heads.score_thresh > 0:  # a region's probabilities sum to 1, which limits how many can pass the threshold
            candidates = min(candidates, self.proposals * (math.ceil(1 / heads.score_thresh) - 1))
        return DetectionLimits(heads.detections_per_img, max(1, candidates), heads.score_thresh, heads.nms_thresh)

    @torch.no_grad()
    def _probe(self) -> tuple[list[str], Sampling, int]:
        """Runs the layers once to measure the strides of the maps.

        Returns the names of the maps that regions are pooled from, how they are pooled, and the number of classes.
        """
        side = math.ceil(PROBE / self.stride) * self.stride
        device = next(self.model.parameters()).device
        images = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
        levels = self._levels(images, torch.tensor([[side, side]], device=device))
        pool = self.model.roi_heads.box_roi_pool
        names = [name for name in levels if name in pool.featmap_names]
        if not names:
            raise Unsupported(f"box_roi_pool needs maps {pool.featmap_names}, the backbone has {list(levels)}")
        anchored = len(self.model.rpn.anchor_generator.sizes)
        if len(levels) != anchored:
            raise Unsupported(f"the backbone has {len(levels)} maps, the anchor generator has sizes for {anchored}")
        # torchvision rounds a map's scale to the nearest power of two
        strides = tuple(2 ** round(math.log2(side / levels[name].features.shape[2])) for name in names)
        if pool.scales is not None:  # the model has run before, and torchvision keeps its first strides
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
            raise Unsupported("box_predictor has no class but the background")
        return names, sampling, scores.shape[1] - 1

    @torch.no_grad()
    def alone_resized(self, image: np.ndarray) -> DetectorOutput:
        """Torchvision's own answer for an image, uint8 [H, W, 3], resized before; arrays without the batch dimension.

        Labels are numbered from 0 without background and rows are zero-padded, as in the graph. After `double()` it
        is torchvision's answer in float64.
        Raises Unsupported if the RPN is a subclass that finds other proposals than torchvision's.
        """
        model, heads = self.model, self.model.roi_heads
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).to(dtype_of(model.backbone)) / 255
        batch = model.transform.batch_images([model.transform.normalize(pixels)], model.transform.size_divisible)
        images = ImageList(batch, [(image.shape[0], image.shape[1])])
        features = _named(model.backbone(batch))
        proposals, objectness = self._proposals_of_torchvision(images, features)
        with fixed_scales(heads.box_roi_pool, self.sampling.strides):
            found = heads(features, [proposals], images.image_sizes)[0][0]
        arrays: list[Any] = [
            np.int64(len(found["boxes"])),
            *(_rows(found[name], heads.detections_per_img) for name in ("boxes", "scores")),
            _rows(found["labels"] - 1, heads.detections_per_img),
            np.int64(len(proposals)),
            *(_rows(values, self.proposals) for values in (proposals, objectness)),
            np.float32(0),  # torchvision does not tell what its limits left out
        ]
        return DetectorOutput(*arrays)

    def _proposals_of_torchvision(self, images: ImageList, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Proposals [P, 4] of one image and their objectness [P], which the RPN itself does not return.

        The steps are those of `RegionProposalNetwork.forward`, by its own methods.
        """
        rpn = self.model.rpn
        logits, deltas = rpn.head(list(features.values()))
        anchors = rpn.anchor_generator(images, list(features.values()))
        counts = [math.prod(of_map.shape[1:]) for of_map in logits]
        logits, deltas = concat_box_prediction_layers(logits, deltas)
        boxes = rpn.box_coder.decode(deltas, anchors).view(1, -1, 4)
        proposals, objectness = rpn.filter_proposals(boxes, logits, images.image_sizes, counts)
        if type(rpn).forward is not RegionProposalNetwork.forward:
            own, _ = rpn(images, features)
            if not torch.equal(own[0], proposals[0]):
                raise Unsupported(f"{type(rpn).__name__}.forward finds other proposals than torchvision's RPN")
        return proposals[0], objectness[0]


def _named(features: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's feature maps by torchvision's names; a single map is "0"."""
    return {"0": features} if isinstance(features, Tensor) else features


def _rows(values: Tensor, count: int) -> np.ndarray:
    """`values` zero-padded to `count` rows, as an array."""
    padded = values.new_zeros((count, *values.shape[1:]))
    padded[: len(values)] = values
    return padded.numpy()


def _to_18_bits(logits: Tensor) -> Tensor:
    """`logits` rounded to 18 of their 24 significant bits.

    The last bits differ between runtimes, and between canvases within one runtime. In an image of one colour thousands
    of anchors are equal, and those bits alone would rank them.
    """
    spread = logits * 65  # 2⁶ + 1: adding and subtracting the product drops six bits (Veltkamp's splitting)
    return spread - (spread - logits)


def _check(model: Any) -> None:
    if not isinstance(model, TorchvisionFasterRCNN):
        raise Unsupported(f"{type(model).__name__} is not a torchvision.models.detection.FasterRCNN")
    heads, rpn = model.roi_heads, model.rpn
    if (fixed := model.transform.fixed_size) is not None:
        raise Unsupported(
            f"the model's transform makes every image {fixed[0]}×{fixed[1]} whatever its shape, "
            "and the service keeps shapes; build the model with min_size and max_size instead of fixed_size"
        )
    if heads.has_mask() or heads.has_keypoint():
        raise Unsupported(f"{type(model).__name__} also finds masks or keypoints, for which the graph has no output")
    if type(heads.box_roi_pool) is not MultiScaleRoIAlign:
        raise Unsupported(f"box_roi_pool is {type(heads.box_roi_pool).__name__}, not MultiScaleRoIAlign")
    generator = type(rpn.anchor_generator)
    if generator.forward is not AnchorGenerator.forward or generator.grid_anchors is not AnchorGenerator.grid_anchors:
        raise Unsupported(f"the anchors come from {generator.__name__}, not from torchvision's AnchorGenerator")
    if any(not math.isclose(one.box_coder.bbox_xform_clip, MAX_LOG_GROWTH) for one in (heads, rpn)):
        raise Unsupported(f"a box_coder's bbox_xform_clip is not torchvision's {MAX_LOG_GROWTH:.4f}")
