"""The optimiser and its learning rate: linear warm-up, then a decay."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.options import TrainingOptions


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _step(done: float) -> float:
    return 1.0 if done < 0.75 else 0.1  # section 3.1.3: 0.001 for 60k mini-batches, 0.0001 for the next 20k


# Each maps the completed share of the iterations after the warm-up to a factor of the learning rate.
DECAYS: dict[str, Callable[[float], float]] = {"cosine": _cosine, "step": _step}


def learning_rate(options: TrainingOptions, iteration: int) -> float:
    """The rate at an iteration, counted from 0."""
    if iteration < options.warm_up:
        return options.learning_rate * (iteration + 1) / options.warm_up
    done = (iteration - options.warm_up) / max(1, options.iterations - options.warm_up)
    return options.learning_rate * DECAYS[options.decay](done)


@dataclass(frozen=True)
class _Kind:
    build: Callable[..., torch.optim.Optimizer]
    details: dict[str, float]
    weight_decay: float
    bias_rate: float  # multiplies the learning rate of biases and normalisations
    values_per_weight: int  # that it keeps, and a checkpoint holds


OPTIMISERS = {
    # Both papers use SGD. In the reference code biases learn at twice the rate.
    "sgd": _Kind(torch.optim.SGD, {"momentum": 0.9}, 0.0005, 2.0, 1),
    # From scratch AdamW needs less than half of SGD's iterations: the loss head_classification falls to 0.61 after
    # 300 of them, and after 700 with SGD at a rate of 0.02.
    "adamw": _Kind(torch.optim.AdamW, {}, 0.05, 1.0, 2),
}


def build_optimiser(detector: FasterRCNN, options: TrainingOptions) -> torch.optim.Optimizer:
    """An optimiser of all trainable parameters. Biases and normalisations have no weight decay (reference code)."""
    kind = OPTIMISERS[options.optimiser]
    trainable = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    weights = {"params": [one for one in trainable if one.ndim > 1], "weight_decay": kind.weight_decay, "factor": 1.0}
    others = {"params": [one for one in trainable if one.ndim <= 1], "weight_decay": 0.0, "factor": kind.bias_rate}
    return kind.build([weights, others], lr=options.learning_rate, **kind.details)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
