"""Fine-tuning depth: how much of a pretrained backbone is left as it is (Girshick 2015, section 4.5)."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:  # a detector is built of backbones
    from faster_rcnn.detector.detector import FasterRCNN

HEAD = "fc6"


def freeze_before(detector: "FasterRCNN", name: str) -> list[nn.Module]:
    """Takes the gradients from all stages of the backbone before the one of that name; `fc6` freezes all of them.

    A pyramid's own layers always learn. Returns the frozen modules, whose batch normalisations must stay in evaluation
    mode.
    Raises ValueError if there is no such stage, naming those that there are.
    """
    stages = detector.backbone.stages
    names = [stage for stage, _ in stages] + [HEAD]
    if name not in names:
        raise ValueError(f"{detector.config.backbone} has no stage {name!r} to train from; it has {', '.join(names)}")
    frozen = [module for _, modules in stages[: names.index(name)] for module in modules]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
