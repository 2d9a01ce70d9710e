"""Fine-tuning depth: which stages of a pretrained backbone are not trained (Girshick 2015, section 4.5)."""

from torch import nn

from faster_rcnn.detector.detector import FasterRCNN

HEAD = "fc6"


def freeze_before(detector: FasterRCNN, name: str) -> list[nn.Module]:
    """Turns off the gradients of all stages of the backbone before stage `name`; `fc6` freezes every stage.

    A pyramid's own layers are always trained. Returns the frozen modules; the caller must keep their batch
    normalisations in evaluation mode.
    Raises ValueError if the backbone has no such stage; the message lists its stages.
    """
    stages = detector.backbone.stages
    names = [stage for stage, _ in stages] + [HEAD]
    if name not in names:
        raise ValueError(f"{detector.config.backbone} has no stage {name!r} to train from; choose {', '.join(names)}")
    frozen = [module for _, modules in stages[: names.index(name)] for module in modules]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
