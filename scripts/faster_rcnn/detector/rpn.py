"""The region proposal network's head (Ren et al. 2015, section 3.1).

N  images;  h, w  feature map size;  k  anchors per location;  A = h * w * k anchors per image, in the order of
`grid_anchors`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RPNHead(nn.Module):
    """A 3×3 convolution and ReLU, then two 1×1 convolutions: 2k class scores and 4k deltas per location.

    Channel order: the class scores are k background scores, then k foreground scores, as in the reference code; the
    deltas are dx, dy, dw, dh of the first anchor, then of the second, and so on.
    """

    def __init__(self, in_channels: int, channels: int, anchors_per_location: int) -> None:
        super().__init__()
        self.k = anchors_per_location
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.cls_score = nn.Conv2d(channels, 2 * self.k, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * self.k, 1)
        for layer in (self.conv, self.cls_score, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)  # section 3.1.3
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features: [N, C, h, w].  Returns class scores [N, A, 2] (background, foreground) and deltas [N, A, 4]."""
        N = features.shape[0]
        hidden = F.relu(self.conv(features))
        scores = self.cls_score(hidden).unflatten(1, (2, self.k)).permute(0, 3, 4, 2, 1).reshape(N, -1, 2)
        deltas = self.bbox_pred(hidden).unflatten(1, (self.k, 4)).permute(0, 3, 4, 1, 2).reshape(N, -1, 4)
        return scores, deltas


def foreground_margin(scores: Tensor) -> Tensor:
    """Foreground score minus background score of `scores` [..., 2]; its sigmoid is the foreground's probability.

    Proposals are ranked by this margin and not by the probability: near 1 a float32 sigmoid maps different margins to
    the same value, and ONNX Runtime's is not monotonic everywhere. The margin is rounded to multiples of 2⁻¹⁴ (which
    changes the probability by at most 1.6e-5), because two runtimes differ in the last bits. In a blank image thousands
    of anchors are equal, and these bits would decide their order.
    """
    steps = 16384.0
    return torch.round((scores[..., 1] - scores[..., 0]) * steps) / steps
