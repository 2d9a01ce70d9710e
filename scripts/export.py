"""Publishes a trained detector as a model that the service can load.

    scripts/export.py runs/shapes --name shapes
    scripts/export.py --torchvision fasterrcnn_resnet50_fpn_v2 --weights COCO_V1 --name coco
    scripts/export.py --torchvision fasterrcnn_resnet50_fpn --checkpoint model_25.pth --labels labels.txt --name mine

The graph is verified before it is published: ONNX Runtime against PyTorch, batches against single images, large
canvases against tight ones. What does not agree is not published.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from faster_rcnn.commands.command_line import positive, run_command
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.label_names import read_labels
from faster_rcnn.data.sources import check_labels, splits_of
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.graph.publish import GraphOptions, Measurement, next_version, publish
from faster_rcnn.torchvision_adapter.builders import BUILDERS, WEIGHTS, Trained, checkpoint_model, published_model
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from faster_rcnn.training.recipe import read_run
from faster_rcnn.training.runs import check_finished

VERIFIED_IMAGES = 24


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="the run's folder, or --torchvision")
    parser.add_argument("--name", required=True, help="the model's name in the store")
    parser.add_argument("--version", type=int, help="its version (default: one more than the highest)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), default="fp32", help="of the graph; default: %(default)s"
    )
    parser.add_argument(
        "--provider",
        choices=("any", "cpu"),
        default="any",
        help="cpu: RoI max pooling as ONNX's own operator, which CUDA lacks and which takes maps of any size "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint", help="of RUN: best or last (default: best, if it has one); of torchvision: the file"
    )
    measured = parser.add_argument_group("what the published graph is measured on")
    measured.add_argument("--data", help="default: RUN's own data; a model of torchvision is not measured without")
    measured.add_argument("--split", help="default: test, or the run's validation split where there is none")
    measured.add_argument("--seed", type=int, default=0, help="of the images that shapes draws (default: %(default)s)")
    measured.add_argument(
        "--skip-bad-boxes", action="store_true", help="leave out what the check refuses (default: as RUN did)"
    )
    measured.add_argument("--pictures", type=positive, help="measure on this many (default: all)")
    measured.add_argument(
        "--no-example",
        action="store_true",
        help="put no image of the data beside the model: it may not be yours to give",
    )
    theirs = parser.add_argument_group("a model of torchvision")
    theirs.add_argument("--torchvision", choices=BUILDERS, help="the function that built it")
    theirs.add_argument("--weights", choices=WEIGHTS, help="torchvision's own, instead of --checkpoint FILE")
    theirs.add_argument(
        "--labels", type=Path, help="a file with one label a line, without background; --weights know theirs"
    )
    theirs.add_argument("--num-classes", type=positive, help="with background; the checkpoint has to agree")
    theirs.add_argument(
        "--batch-norm-epsilon",
        type=float,
        help="of frozen normalisations (default: 0 for fasterrcnn_resnet50_fpn, as in COCO_V1, else 1e-5)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if (arguments.run is None) == (arguments.torchvision is None):
        raise ValueError("name what is published: a RUN or --torchvision BUILDER, not both")
    folder = publish_run(arguments) if arguments.run else publish_torchvision(arguments)
    card = json.loads((folder / "model.json").read_text())
    print(json.dumps({"verification": card["verification"], "metrics": card["metrics"]}, indent=1))
    print(f"published {folder}, {card['bytes'] / 1e6:.1f} MB")


def publish_run(arguments: argparse.Namespace) -> Path:
    """A detector that was trained here."""
    for option in ("weights", "labels", "num_classes", "batch_norm_epsilon"):
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --torchvision; leave it out for a RUN")
    if arguments.checkpoint not in (None, "best", "last"):
        raise ValueError(f"--checkpoint of a RUN is best or last, not {arguments.checkpoint}")
    check_finished(arguments.run)
    state = read_checkpoint(arguments.run, arguments.checkpoint or best_or_last(arguments.run))
    if (trained := state.get("objective", "joint")) != "joint":
        raise ValueError(
            f"{arguments.run} has trained the {trained} part alone, which cannot detect by itself; "
            "publish a run of --schedule joint or alternating"
        )
    detector = build_detector(state).eval()
    record = read_run(arguments.run) | {"iteration": state["iteration"]}
    record.pop("config", None)  # model.json has the detector's own
    data, own = arguments.data or record["data"], record["val_split"]
    skip = arguments.skip_bad_boxes or record.get("skip_bad_boxes", False)
    test, measured_on = open_test(arguments, data, own, skip)
    check_labels(test, detector.config.labels, str(arguments.run))
    return publish(
        detector,
        arguments.store,
        arguments.name,
        version_of(arguments),
        training=record,
        images=first_images(test),
        measurement=Measurement(test, measured_on, arguments.pictures, example=not arguments.no_example),
        options=GraphOptions(arguments.precision, arguments.provider),
    )


def publish_torchvision(arguments: argparse.Namespace) -> Path:
    """A model of torchvision with weights from elsewhere."""
    if not arguments.data and (arguments.split or arguments.pictures or arguments.skip_bad_boxes):
        raise ValueError("--split, --pictures and --skip-bad-boxes are of --data; name it, or leave them out")
    trained = read_torchvision(arguments)
    detector = TorchvisionDetector(trained.model)
    labels = trained.labels if arguments.labels is None else read_labels(arguments.labels, detector.classes)
    assert labels is not None
    measurement = None
    if arguments.data:
        test, measured_on = open_test(arguments, arguments.data, "val", arguments.skip_bad_boxes)
        test = renumber(test, labels, arguments.torchvision)
        measurement = Measurement(test, measured_on, arguments.pictures, example=not arguments.no_example)
    if trained.remark:
        print(trained.remark)
    return publish(
        detector,
        arguments.store,
        arguments.name,
        version_of(arguments),
        training=trained.origin,
        labels=labels,
        images=first_images(measurement.data) if measurement else None,
        measurement=measurement,
        options=GraphOptions(arguments.precision, arguments.provider),
    )


def read_torchvision(arguments: argparse.Namespace) -> Trained:
    """The model of --torchvision with --weights or --checkpoint."""
    if (arguments.weights is None) == (arguments.checkpoint is None):
        raise ValueError(f"{arguments.torchvision} wants --weights COCO_V1 or --checkpoint FILE, one of them")
    if arguments.weights:
        if arguments.num_classes or arguments.batch_norm_epsilon is not None:
            raise ValueError("--num-classes and --batch-norm-epsilon are of --checkpoint FILE; leave them out")
        return published_model(arguments.torchvision, arguments.weights)
    if arguments.labels is None:
        raise ValueError("a checkpoint does not know its labels; give --labels FILE, one a line, without background")
    return checkpoint_model(
        arguments.torchvision, Path(arguments.checkpoint), arguments.num_classes, arguments.batch_norm_epsilon
    )


def open_test(arguments: argparse.Namespace, data: str, own: str, skip: bool) -> tuple[Dataset, str]:
    """The data that the graph is measured on, and what it is called; `own`: the split where there is no test split."""
    split = arguments.split or ("test" if "test" in splits_of(data) else own)
    test = open_checked(data, split, arguments.seed, skip)
    return test, f"{data}/{split}" + (f", seed {arguments.seed}" if arguments.seed else "")


def first_images(test: Dataset) -> list[np.ndarray]:
    """What the graph is verified on."""
    return [test[index].image for index in range(min(VERIFIED_IMAGES, len(test)))]


def version_of(arguments: argparse.Namespace) -> int:
    if arguments.version is None:
        return next_version(arguments.store, arguments.name)
    return int(arguments.version)


if __name__ == "__main__":
    run_command(main)
