"""What a training run says of the data that its limits leave out."""

from dataclasses import replace
from pathlib import Path

from faster_rcnn.data.shapes import Shapes
from faster_rcnn.data.sources import open_dataset
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.limits import with_detections
from faster_rcnn.training.caps import limits_exceeded
from faster_rcnn.training.options import complete_options, configure
from tests.faster_rcnn.data.coco_folder import annotation_entry, image_entry, write_coco_folder, write_image

BOXES = [(float(x), float(y), 4.0, 4.0) for y in range(0, 50, 5) for x in range(0, 90, 5)]  # 10 rows of 18


def test_each_limit_that_the_data_exceed_is_said_once_with_its_option(tmp_path: Path) -> None:
    # Each split has an image with 120 objects and one with 20: more than 100 detections, and more than the 16 regions
    # on objects that a step samples for the compact backbone.
    for split in ("train", "val"):
        for number in (1, 2):
            write_image(tmp_path / f"{number}.jpg")
        objects = [annotation_entry(place + 1, 1, box) for place, box in enumerate(BOXES[:120])]
        objects += [annotation_entry(place + 121, 2, box) for place, box in enumerate(BOXES[:20])]
        data = write_coco_folder(tmp_path, [image_entry(1, "1.jpg"), image_entry(2, "2.jpg")], objects, split)
    training, validation = open_dataset(data, "train"), open_dataset(data, "val")
    config = default_config("compact", ("dog",))
    options = complete_options({"validation_pictures": 1}, "compact", "none", data, 2)
    crowded, sampled, crowded_too, first = limits_exceeded(training, validation, config, options)
    assert crowded.startswith("warning: 1 of 2 training images have more objects (up to 120) than the 100 detections")
    assert sampled.startswith("warning: 2 of 2 training images have more objects (up to 120) than the 16 regions")
    assert crowded_too.startswith("warning: 1 of 2 validation images have more objects (up to 120)")
    assert first == "warning: validation uses the first 1 of 2 images; --validation-images 2 uses all"
    # The options that the lines name make them disappear.
    roomy = with_detections(config, 120)
    roomy = replace(roomy, proposal_sampling=replace(roomy.proposal_sampling, batch=480))  # a quarter of it is 120
    assert limits_exceeded(training, validation, roomy, replace(options, validation_pictures=2)) == []


def test_nothing_is_said_of_generated_images_which_never_end() -> None:
    config, options = default_config("compact", Shapes.labels), complete_options({}, "compact", "none", "shapes", 9)
    assert limits_exceeded(Shapes("train"), Shapes("val"), config, options) == []


def test_the_option_for_detections_reaches_the_configuration() -> None:
    assert configure({"detections": 300}, "compact", ("dog",)).detections.detections == 300
    assert configure({"detections": 300, "test_proposals": (900, 200)}, "compact", ("dog",)).proposals.after_nms == 300
