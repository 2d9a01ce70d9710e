"""What the limits of a training run leave out of its data: said once, before the first iteration."""

from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.description import objects_per_image
from faster_rcnn.data.folder import FolderDataset
from faster_rcnn.detector.config import DetectorConfig
from faster_rcnn.detector.limits import too_many_objects, too_many_to_sample
from faster_rcnn.training.options import TrainingOptions


def limits_exceeded(
    training: Dataset, validation: Dataset, config: DetectorConfig, options: TrainingOptions
) -> list[str]:
    """A line for each limit that the data exceed, with figures and the option that raises it."""
    lines = []
    for dataset, images in ((training, "training images"), (validation, "validation images")):
        if isinstance(dataset, FolderDataset):
            counts = objects_per_image(dataset)
            lines.append(too_many_objects(counts, config.detections.detections, images))
            lines.append(too_many_to_sample(counts, config) if dataset is training else None)
    used, there = options.validation_pictures, len(validation)
    if used < there and isinstance(validation, FolderDataset):
        lines.append(f"validation uses the first {used} of {there} images; --validation-images {there} uses all")
    return [f"warning: {line}" for line in lines if line is not None]
