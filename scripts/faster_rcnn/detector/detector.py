"""The full detector: normalise → backbone → RPN → proposals → RoI pooling → head → detections.

N  images;  H, W  canvas, multiples of the backbone's stride;  A  anchors;  P  proposals;  D  detections per image.
Images are uint8 [N, H, W, 3], RGB, each at the top left of its canvas; sizes are int64 [N, 2], height and width.
The output for an image depends on that image alone: not on the canvas, the other images or the bytes outside its size.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faster_rcnn.detector.anchor_shapes import scales_of_maps
from faster_rcnn.detector.anchors import cell_anchors, grid_anchors
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.config import DetectorConfig, canvases
from faster_rcnn.detector.padded_rows import real_rows
from faster_rcnn.detector.padding import inside
from faster_rcnn.detector.proposals import Proposals, propose
from faster_rcnn.detector.resize import resize_image
from faster_rcnn.detector.roi_head import Detections, RoIHead, detect
from faster_rcnn.detector.roi_pooling import LONGEST_BIN, pool_regions
from faster_rcnn.detector.rpn import RPNHead, foreground_margin
from faster_rcnn.detector.rules import ProposalLimits


def dtype_of(layers: nn.Module) -> torch.dtype:
    """The floating-point type of the parameters of `layers`, in which they compute."""
    return next((parameter.dtype for parameter in layers.parameters()), torch.float32)


class DetectorOutput(NamedTuple):
    """Detections and proposals of N images; rows after an image's count are zero. Labels start at 0 (no background).

    num_detections int64 [N], boxes [N, D, 4], scores [N, D], labels int64 [N, D];
    num_proposals int64 [N], proposals [N, P, 4], objectness [N, P]. Boxes are in canvas pixels, best score first.
    left_out [N]: no detection with a higher score was left out because of a limit on their number (`Detections`).
    """

    num_detections: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    num_proposals: Tensor
    proposals: Tensor
    objectness: Tensor
    left_out: Tensor


class RPNOutput(NamedTuple):
    """The RPN's output for every anchor.

    scores: [N, A, 2], background and foreground;  deltas: [N, A, 4];  anchors: [A, 4];
    valid: bool [N, A], False where the anchor's location lies in the padding;
    levels: number of anchors of each feature map, in the order of the anchors: finest map first.
    """

    scores: Tensor
    deltas: Tensor
    anchors: Tensor
    valid: Tensor
    levels: tuple[int, ...]


class FasterRCNN(nn.Module):
    """Faster R-CNN. `forward` is what an exported graph computes; the package `training` trains the detector.

    The backbone has one feature map, as in the paper, or a pyramid's maps; the RPN's head is applied to each of them.
    stride: the height and width of a canvas are multiples of it;  classes: number of classes without background;
    score_floor: the lowest score of a detection;
    portable_max_pooling: whether an exported graph uses a form of RoI max pooling that runs on every provider, instead
    of ONNX's own operator, for which ONNX Runtime has no CUDA kernel.
    """

    antialias = True  # images are resized with antialiasing, in training and by the service
    stable_ranking = True  # proposals are ranked by rounded margins, on which runtimes agree (`foreground_margin`)
    location_anchors: Tensor  # [maps, k, 4], the anchors of one location of each map, centred on the origin
    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = BACKBONES[config.backbone]()
        self.stride = self.backbone.stride
        self.resize = config.resize
        self.labels = config.labels
        self.classes = len(config.labels)
        self.score_floor = config.detections.score_floor
        channels = self.backbone.out_channels
        scales = scales_of_maps(config, len(self.backbone.strides))
        self.rpn = RPNHead(channels, config.rpn_channels, len(scales[0]) * len(config.anchor_ratios))
        self.head = RoIHead(channels, config.roi_size, config.head_units, len(config.labels), config.head_dropout)
        self.portable_max_pooling = True
        location_anchors = torch.stack([cell_anchors(map_scales, config.anchor_ratios) for map_scales in scales])
        self.register_buffer("location_anchors", location_anchors, persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> DetectorOutput:
        """Computes the detections and proposals of a batch."""
        features = self.features(images, sizes)
        proposals = self.select(self.regions(features, sizes), sizes, self.config.proposals)
        found = self.detect_in(features, proposals.boxes, proposals.number, sizes)
        return DetectorOutput(*found[:4], *proposals, found.left_out)

    def alone(self, image: np.ndarray) -> DetectorOutput:
        """Detections and proposals of one image, uint8 [H, W, 3], as arrays without the batch dimension.

        The image is resized by the detector's rule; the boxes are in pixels of `image`. `faster_rcnn.open_model` also
        accepts files, and gives the names of the labels.
        """
        resized, scale_x, scale_y = resize_image(image, self.resize)
        found = self.alone_resized(resized)
        scale = np.array([scale_x, scale_y] * 2, np.float32)
        limit = np.array([image.shape[1], image.shape[0]] * 2, np.float32)
        values: dict[str, Any] = found._asdict()
        values |= {name: (values[name] / scale).clip(0, limit) for name in ("boxes", "proposals")}
        return DetectorOutput(**values)

    @torch.no_grad()
    def alone_resized(self, image: np.ndarray) -> DetectorOutput:
        """As `alone`, for an image that has been resized already; the boxes are in its pixels."""
        height, width = image.shape[:2]
        canvas = np.zeros((1, *(-(-side // self.stride) * self.stride for side in (height, width)), 3), np.uint8)
        canvas[0, :height, :width] = image
        answer = self(torch.from_numpy(canvas), torch.tensor([[height, width]]))
        return DetectorOutput(*(values[0].numpy() for values in answer))

    def propose(self, images: Tensor, sizes: Tensor, limits: ProposalLimits) -> Proposals:
        """Runs the region proposal network alone."""
        return self.select(self.regions(self.features(images, sizes), sizes), sizes, limits)

    def detect_given(self, images: Tensor, sizes: Tensor, boxes: Tensor, count: Tensor) -> Detections:
        """Runs Fast R-CNN alone, on the first `count` [N] of each image's proposals [N, P, 4], in canvas pixels."""
        return self.detect_in(self.features(images, sizes), boxes, count, sizes)

    def features(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The backbone's feature maps, finest first, which the RPN and the head share."""
        pixels = self._normalise(images, sizes)
        return self.backbone(pixels.to(dtype_of(self.backbone)), sizes)

    @property
    def white(self) -> int:
        """The value that means white in an image with 16 bits per channel."""
        return self.config.white

    @property
    def feature_layers(self) -> list[nn.Module]:
        """The layers that compute in float16 if the graph is exported in that precision."""
        return [self.backbone, self.rpn, self.head.fc6, self.head.fc7]

    def for_export(self, cpu_only: bool) -> "FasterRCNN":
        """A copy, with the same parameters, whose RoI max pooling suits the graph's provider.

        cpu_only: use ONNX's own operator, which has no CUDA kernel, instead of the portable form.
        Raises ValueError if the maps are too large for the portable form.
        """
        detector = copy.copy(self)
        detector.portable_max_pooling = not cpu_only
        if detector.portable_max_pooling:
            detector.check_map_size()
        return detector

    def describe(self) -> dict[str, Any]:
        """The detector's configuration, for `model.json`."""
        return self.config.to_dict()

    def regions(self, features: list[Tensor], sizes: Tensor) -> RPNOutput:
        """Runs the RPN's head on every map."""
        maps = [
            self._regions_of_map(one, cell, sizes, stride)
            for one, cell, stride in zip(features, self.location_anchors, self.backbone.strides, strict=True)
        ]
        if len(maps) == 1:
            return maps[0]
        scores, deltas, anchors, valid, levels = zip(*maps, strict=True)
        return RPNOutput(
            torch.cat(scores, 1), torch.cat(deltas, 1), torch.cat(anchors), torch.cat(valid, 1), sum(levels, ())
        )

    def _regions_of_map(self, features: Tensor, cell: Tensor, sizes: Tensor, stride: int) -> RPNOutput:
        scores, deltas = self.rpn(features)
        h, w = features.shape[2:]
        valid = inside(sizes, stride, h, w)[..., None].expand(-1, -1, -1, self.rpn.k).flatten(1)
        anchors = grid_anchors(cell, h, w, stride)
        return RPNOutput(scores.float(), deltas.float(), anchors, valid, (h * w * self.rpn.k,))

    def select(self, rpn: RPNOutput, sizes: Tensor, limits: ProposalLimits) -> Proposals:
        """Turns the RPN's output into proposals."""
        return propose(foreground_margin(rpn.scores), rpn.deltas, rpn.anchors, rpn.valid, sizes, limits, rpn.levels)

    def classify(self, features: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the head on regions [N, P, 4].

        Returns class scores [N, P, C + 1] and normalised deltas [N, P, C, 4], where C is the number of classes.
        """
        return self.head(self._pool(features, boxes))

    def _pool(self, features: list[Tensor], boxes: Tensor) -> Tensor:
        pooled, strides, pooling = features[: self.backbone.pooled], self.backbone.strides, self.config.roi_pooling
        if pooling == "max" and self.backbone.signed:
            # Cells outside the image are zero, and would otherwise win over negative cells inside it.
            pooled = [F.relu(one) for one in pooled]
        if pooling == "max" and self.portable_max_pooling and torch.compiler.is_exporting():
            pooling = "portable max"
        return pool_regions(pooled, strides, boxes, self.config.roi_size, pooling)

    def check_map_size(self) -> None:
        """Raises ValueError if a canvas is too large for the portable form of RoI max pooling."""
        largest = max(max(canvas) for canvas in canvases(self.resize, self.stride)) // self.backbone.strides[0]
        allowed = (LONGEST_BIN - 1) * self.config.roi_size  # because a bin's ends are rounded outwards
        if self.config.roi_pooling == "max" and largest > allowed:
            raise ValueError(
                f"RoI max pooling on a GPU allows maps of up to {allowed} cells per side, but the resize rule needs "
                f"{largest}; export with --provider cpu, lower max_size, or use roi_pooling 'align'"
            )

    def detect_in(self, features: list[Tensor], boxes: Tensor, count: Tensor, sizes: Tensor) -> Detections:
        """Detects objects in the first `count` [N] of each image's regions [N, P, 4]; the others are padding."""
        config = self.config
        N, P = boxes.shape[:2]
        rows = real_rows(count, P)
        pooled = self._pool(features, boxes)
        if self.backbone.pooled == 1:  # features pooled from one map are channels-last in memory
            channels_last = pooled.permute(0, 1, 3, 4, 2).flatten(0, 1)
            scores, deltas = self.head.of_channels_last(rows.take(channels_last))
        else:
            scores, deltas = self.head(rows.take(pooled.flatten(0, 1)))
        scores, deltas = rows.put_back(scores, deltas)
        scores, deltas = scores.reshape(N, P, -1), deltas.reshape(N, P, self.classes, 4)
        return detect(scores, deltas, boxes, count, sizes, config.detections, config.target_normalisation)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalises uint8 [N, H, W, 3] to float [N, 3, H, W], zero outside the sizes, whatever bytes are there."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std
        mask = inside(sizes, 1, pixels.shape[2], pixels.shape[3])
        return torch.where(mask[:, None], pixels, torch.zeros_like(pixels[:, :, :1, :1]))
