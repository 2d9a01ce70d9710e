"""Publishes a trained detector as a model that the service can load.

faster-rcnn export runs/shapes --name shapes
faster-rcnn export --torchvision fasterrcnn_resnet50_fpn_v2 --weights COCO_V1 --name coco
faster-rcnn export --torchvision fasterrcnn_resnet50_fpn --checkpoint model_25.pth --labels labels.txt --name mine

The graph is verified before it is published: ONNX Runtime against PyTorch, batches against single images, large
canvases against tight ones. A graph whose answers differ is not published.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_limit_images,
    add_seed,
    add_skip_bad_boxes,
    check_sizes,
    check_writable,
    positive,
    required,
    run_command,
)
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.label_names import read_labels
from faster_rcnn.data.sources import check_labels, splits_of
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.graph.publish import GraphOptions, Measurement, next_version, publish
from faster_rcnn.torchvision_adapter.builders import BUILDERS, WEIGHTS, Trained, checkpoint_model, published_model
from faster_rcnn.torchvision_adapter.detector import TorchvisionDetector
from faster_rcnn.torchvision_adapter.settings import SETTINGS, Setting
from faster_rcnn.training.run import check_finished, read_record

VERIFIED_IMAGES = 24


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn export`. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return run_command("faster-rcnn export", lambda: export(arguments), arguments.store)


def build_parser() -> Parser:
    parser = Parser("export", "RUN --name NAME [OPTION ...]", __doc__)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run folder; or give --torchvision instead")
    parser.add_argument("--name", help="name of the model in the store")
    parser.add_argument(
        "--version", type=int, metavar="N", help="version to publish (default: one more than the highest)"
    )
    parser.add_argument(
        "--store",
        "--model-store",
        type=Path,
        metavar="DIR",
        default=Path("model_store"),
        help="the model store (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="best|last|FILE",
        help="checkpoint of RUN: best or last (default: best, if there is one); with --torchvision: a file",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="precision of the graph's features (default: fp32)",
    )
    parser.add_argument(
        "--provider",
        choices=("any", "cpu"),
        default="any",
        help="execution provider that must run the graph; cpu: RoI max pooling as ONNX's own operator, which accepts "
        "feature maps of any size but has no CUDA kernel (default: any)",
    )
    measured = parser.add_argument_group("what the published graph is measured on")
    add_data(measured, " (default: the data of RUN; a torchvision model is then not measured)")
    measured.add_argument(
        "--split", help="split to measure on (default: test, or the run's validation split if there is no test split)"
    )
    add_limit_images(measured)
    add_skip_bad_boxes(measured, " (default: as in RUN)")
    add_seed(measured)
    measured.add_argument(
        "--no-example",
        action="store_true",
        help="publish no example image with the model (you may not have the right to share it)",
    )
    theirs = parser.add_argument_group("a torchvision model")
    theirs.add_argument("--torchvision", choices=BUILDERS, help="torchvision function that built the model")
    theirs.add_argument("--weights", choices=WEIGHTS, help="torchvision's pretrained weights; instead of --checkpoint")
    theirs.add_argument(
        "--labels", type=Path, metavar="FILE", help="one label per line, without background; needed with --checkpoint"
    )
    theirs.add_argument(
        "--num-classes",
        type=positive,
        metavar="N",
        help="number of classes with background, checked against the checkpoint (default: the checkpoint's)",
    )
    theirs.add_argument(
        "--batch-norm-epsilon",
        type=float,
        metavar="ε",
        help="epsilon of frozen batch normalisation (default: 0 for fasterrcnn_resnet50_fpn, as in COCO_V1, else 1e-5)",
    )
    theirs.add_argument(
        "--use",
        metavar="model|ema|PREFIX",
        help="which model of a checkpoint that holds several (default: the one that is not averaged)",
    )
    settings = parser.add_argument_group(
        "what a torchvision checkpoint does not hold",
        "Defaults: the arguments that the training program saved in the file, else torchvision's. The export prints "
        "each value with its source.",
    )
    for name, setting in SETTINGS.items():
        settings.add_argument(
            setting.option(name), dest=name, type=_usable(setting), metavar=setting.metavar, help=setting.help
        )
    return parser


def _usable(setting: Setting) -> Callable[[str], Any]:
    """The type of a setting's option."""

    def convert(text: str) -> Any:
        try:
            return setting.convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def export(arguments: argparse.Namespace) -> None:
    """Publishes the detector that the options name, and prints the results of its verification."""
    if (arguments.run is None) == (arguments.torchvision is None):
        raise ValueError("name what to publish: either a RUN or --torchvision BUILDER")
    required(arguments.name, "--name", "choose the model's name in the store")
    check_writable(arguments.store)
    folder = publish_run(arguments) if arguments.run else publish_torchvision(arguments)
    card = json.loads((folder / "model.json").read_text())
    print(json.dumps({"verification": card["verification"], "metrics": card["metrics"]}, indent=1))
    print(f"published {folder}, {card['bytes'] / 1e6:.1f} MB")


def publish_run(arguments: argparse.Namespace) -> Path:
    """Publishes the detector of a training run."""
    for name in ("weights", "labels", "num_classes", "batch_norm_epsilon", "use", *SETTINGS):
        if getattr(arguments, name) is not None:
            option = SETTINGS[name].option(name) if name in SETTINGS else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} belongs to --torchvision; leave it out for a RUN")
    if arguments.checkpoint not in (None, "best", "last"):
        raise ValueError(f"--checkpoint of a RUN is best or last, not {arguments.checkpoint}")
    check_finished(arguments.run)
    state = read_checkpoint(arguments.run, arguments.checkpoint or best_or_last(arguments.run))
    if (trained := state.get("objective", "joint")) != "joint":
        raise ValueError(
            f"{arguments.run} has trained only the {trained} part, which cannot detect on its own; "
            "publish a run of --schedule joint or alternating"
        )
    detector = build_detector(state).eval()
    record = read_record(arguments.run)
    skip = arguments.skip_bad_boxes or record.skip_bad_boxes
    test, measured_on = open_test(arguments, arguments.data or record.data, record.val_split, skip)
    check_labels(test, detector.config.labels, str(arguments.run))
    return publish(
        detector,
        arguments.store,
        arguments.name,
        version_of(arguments),
        # model.json already holds the detector's own config
        training=replace(record, config=None).to_json() | {"iteration": state["iteration"]},
        images=first_images(test),
        measurement=Measurement(test, measured_on, arguments.limit_images, example=not arguments.no_example),
        options=GraphOptions(arguments.precision, arguments.provider),
    )


def publish_torchvision(arguments: argparse.Namespace) -> Path:
    """Publishes a torchvision model, with torchvision's weights or those of a checkpoint."""
    if not arguments.data and (arguments.split or arguments.limit_images or arguments.skip_bad_boxes):
        raise ValueError("--split, --limit-images and --skip-bad-boxes need --data; name it, or leave them out")
    trained = read_torchvision(arguments)
    detector = TorchvisionDetector(trained.model)
    labels = trained.labels if arguments.labels is None else read_labels(arguments.labels, detector.classes)
    assert labels is not None
    measurement = None
    if arguments.data:
        test, measured_on = open_test(arguments, arguments.data, "val", arguments.skip_bad_boxes)
        test = renumber(test, labels, arguments.torchvision)
        measurement = Measurement(test, measured_on, arguments.limit_images, example=not arguments.no_example)
    print("\n".join(trained.report))
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
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    check_sizes(settings)
    if (arguments.weights is None) == (arguments.checkpoint is None):
        raise ValueError(f"{arguments.torchvision} needs either --weights COCO_V1 or --checkpoint FILE")
    if arguments.weights:
        if arguments.num_classes or arguments.use or arguments.batch_norm_epsilon is not None:
            raise ValueError("--num-classes, --use and --batch-norm-epsilon go with --checkpoint FILE; leave them out")
        return published_model(arguments.torchvision, arguments.weights, settings)
    if arguments.labels is None:
        raise ValueError(
            "a checkpoint does not name its classes; give --labels FILE, one label per line, without background"
        )
    return checkpoint_model(
        arguments.torchvision,
        Path(arguments.checkpoint),
        arguments.num_classes,
        arguments.batch_norm_epsilon,
        arguments.use,
        settings,
    )


def open_test(arguments: argparse.Namespace, data: str, own: str, skip: bool) -> tuple[Dataset, str]:
    """The data that the graph is measured on, and its name in the card.

    own: the split to use if there is no test split.
    """
    split = arguments.split or ("test" if "test" in splits_of(data) else own)
    test = open_checked(data, split, arguments.seed, skip)
    return test, f"{data}/{split}" + (f", seed {arguments.seed}" if arguments.seed else "")


def first_images(test: Dataset) -> list[np.ndarray]:
    """The images that the graph is verified on."""
    return [test[index].image for index in range(min(VERIFIED_IMAGES, len(test)))]


def version_of(arguments: argparse.Namespace) -> int:
    if arguments.version is None:
        return next_version(arguments.store, arguments.name)
    return int(arguments.version)
