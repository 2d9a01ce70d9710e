"""How one training runs: its length, rates, optimiser, data, and what is left as it was."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from faster_rcnn.detector.detector import FasterRCNN


@dataclass(frozen=True)
class TrainingOptions:
    """One run. Times are in iterations; an iteration is one batch."""

    iterations: int
    batch_size: int  # images a step, over all processes and parts
    learning_rate: float
    warm_up: int  # the rate grows linearly over these
    decay: str = "cosine"  # a key of DECAYS
    optimiser: str = "sgd"  # a key of OPTIMISERS
    clip_norm: float = 10.0  # the norm of all gradients together; simple runs stay below, a bad batch does not
    accumulate: int = 1  # parts that a batch is computed in, one after the other
    augmentations: tuple[str, ...] = ("flip",)
    with_difficult: bool = False  # VOC's difficult objects; without them Fast R-CNN gains 1.2 points (section 4.3)
    trainable_from: str | None = None  # the first stage of the backbone that learns; None: all do
    frozen_statistics: bool = False  # batch normalisation of the backbone stays as it was given
    validate_every: int = 1000
    validation_pictures: int = 200
    checkpoint_every: int = 250
    workers: int = 1
    seed: int = 0
    mixed_precision: bool = True


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _step(done: float) -> float:
    return 1.0 if done < 0.75 else 0.1  # section 3.1.3: 0.001 for 60k mini-batches, 0.0001 for the next 20k


DECAYS: dict[str, Callable[[float], float]] = {"cosine": _cosine, "step": _step}


def short_warm_up(warm_up: int, iterations: int) -> int:
    """A warm-up that leaves a short run at least three quarters to learn in."""
    return max(1, min(warm_up, iterations // 4))


def learning_rate(options: TrainingOptions, iteration: int) -> float:
    """The rate at an iteration: a linear warm-up, then the decay over what remains."""
    if iteration < options.warm_up:
        return options.learning_rate * (iteration + 1) / options.warm_up
    done = (iteration - options.warm_up) / max(1, options.iterations - options.warm_up)
    return options.learning_rate * DECAYS[options.decay](done)


@dataclass(frozen=True)
class _Kind:
    build: Callable[..., torch.optim.Optimizer]
    details: dict[str, float]
    weight_decay: float
    bias_rate: float  # times the rate of the weights


OPTIMISERS = {
    # both papers; biases learn twice as fast in the reference code
    "sgd": _Kind(torch.optim.SGD, {"momentum": 0.9}, 0.0005, 2.0),
    # From scratch it needs fewer iterations: head_classification is at 0.61 after 300, with SGD at 0.02 after 700.
    "adamw": _Kind(torch.optim.AdamW, {}, 0.05, 1.0),
}


def build_optimiser(detector: FasterRCNN, options: TrainingOptions) -> torch.optim.Optimizer:
    """The optimiser of what is trainable. Biases and normalisations are not decayed (as in the reference code)."""
    kind = OPTIMISERS[options.optimiser]
    learning = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    weights = {"params": [one for one in learning if one.ndim > 1], "weight_decay": kind.weight_decay, "factor": 1.0}
    others = {"params": [one for one in learning if one.ndim <= 1], "weight_decay": 0.0, "factor": kind.bias_rate}
    return kind.build([weights, others], lr=options.learning_rate, **kind.details)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
