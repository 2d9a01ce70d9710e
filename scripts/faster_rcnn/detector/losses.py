"""The losses, one function per equation.

A  anchors;  R  regions;  C  classes without background.  Each function computes the loss of one image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from faster_rcnn.detector.rules import LossRule


def log_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Negative logarithm of the softmax probability of the true class, for each row.

    scores: [R, classes];  labels: int64 [R].  Returns [R].
    """
    return F.cross_entropy(scores, labels, reduction="none")


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Fast R-CNN eq. 3, summed over the four deltas: 0.5 x² / β where |x| < β, else |x| - 0.5 β.

    deltas, targets: [R, 4].  Returns [R].
    """
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="none").sum(dim=1)


def rpn_classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """(1 / N_cls) Σ L_cls(p_i, p*_i), the first term of eq. 1; N_cls is the mini-batch size.

    scores: [N_cls, 2] of the sampled anchors;  labels: int64 [N_cls], 1 or 0.  Returns a scalar.
    """
    return log_loss(scores, labels).sum() / max(len(labels), 1)


def rpn_box_loss(deltas: Tensor, targets: Tensor, normaliser: int, rule: LossRule) -> Tensor:
    """λ (1 / N_reg) Σ p*_i L_reg(t_i, t*_i), the second term of eq. 1.

    deltas, targets: [positives, 4], of the sampled anchors with p* = 1;  normaliser: N_reg.  Returns a scalar.
    """
    return rule.rpn_lambda * smooth_l1(deltas, targets, rule.rpn_beta).sum() / max(normaliser, 1)


def head_classification_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """L_cls(p, u) = -log p_u (Fast R-CNN section 2.3), the mean over the sampled regions.

    scores: [R, C + 1];  labels: int64 [R], 0 is background.  Returns a scalar.
    """
    return log_loss(scores, labels).sum() / max(len(labels), 1)


def head_box_loss(deltas: Tensor, targets: Tensor, labels: Tensor, rule: LossRule) -> Tensor:
    """λ [u ≥ 1] L_loc(t^u, v) (Fast R-CNN eq. 1 and 2), the mean over the sampled regions, background included.

    deltas: [R, C, 4];  targets: [R, 4];  labels: int64 [R].  Returns a scalar.
    """
    objects = (labels >= 1).nonzero()[:, 0]
    of_true_class = deltas[objects, labels[objects] - 1]
    return rule.head_lambda * smooth_l1(of_true_class, targets[objects], rule.head_beta).sum() / max(len(labels), 1)


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum that training minimises."""
    return torch.stack(list(losses.values())).sum()
