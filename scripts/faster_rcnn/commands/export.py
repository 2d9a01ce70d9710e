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
from typing import Any, NamedTuple

import numpy as np

from faster_rcnn.commands.argument_types import not_negative, path, positive, version_number
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_exif_boxes,
    add_limit_images,
    add_score_threshold,
    add_seed,
    add_skip_bad_boxes,
    add_val_share,
    add_white,
    check_sizes,
    check_writable,
    required,
    run_command,
    val_share_for,
)
from faster_rcnn.data.class_numbers import renumber
from faster_rcnn.data.dataset import Dataset
from faster_rcnn.data.decode_check import open_checked
from faster_rcnn.data.label_names import read_labels
from faster_rcnn.data.sources import splits_of
from faster_rcnn.data.white import white_in
from faster_rcnn.detector.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.detector.limits import with_detections
from faster_rcnn.graph.publish import Measurement, check_place, next_version, publish
from faster_rcnn.graph.served_threshold import Validation
from faster_rcnn.graph.version_graphs import GraphOptions
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
    parser.add_argument("run", type=path, nargs="?", metavar="RUN", help="run folder; or give --torchvision instead")
    parser.add_argument("--name", help="name of the model in the store")
    parser.add_argument(
        "--version", type=version_number, metavar="N", help="version to publish (default: one more than the highest)"
    )
    parser.add_argument(
        "--store",
        "--model-store",
        type=path,
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
        help="execution provider that must run the version; cpu: no graph for CUDA, and RoI max pooling as ONNX's own "
        "operator, which accepts feature maps of any size but has no CUDA kernel (default: any)",
    )
    parser.add_argument(
        "--cuda-fp16",
        action="store_true",
        help="also publish a graph for CUDA in float16, which the service runs with PRECISION=fp16",
    )
    add_score_threshold(parser)
    parser.add_argument(
        "--detections",
        type=positive,
        metavar="N",
        help="most detections for an image (default: as in RUN; for torchvision as in the model)",
    )
    add_white(parser, "that of RUN; for a torchvision model found in --data, else 65535")
    measured = parser.add_argument_group("what the published graph is measured on")
    add_data(measured, " (default: the data of RUN; a torchvision model is then not measured)")
    measured.add_argument(
        "--split", help="split to measure on (default: test, or the run's validation split if there is no test split)"
    )
    add_limit_images(measured)
    add_val_share(measured, "as in RUN, or 0.2 of data without any splits")
    add_skip_bad_boxes(measured, " (default: as in RUN)")
    add_exif_boxes(measured, "; as in RUN")
    add_seed(measured)
    measured.add_argument(
        "--no-example",
        action="store_true",
        help="publish no example image with the model (you may not have the right to share it)",
    )
    _add_torchvision(parser)
    return parser


def _add_torchvision(parser: Parser) -> None:
    theirs = parser.add_argument_group("a torchvision model")
    theirs.add_argument("--torchvision", choices=BUILDERS, help="torchvision function that built the model")
    theirs.add_argument("--weights", choices=WEIGHTS, help="torchvision's pretrained weights; instead of --checkpoint")
    theirs.add_argument(
        "--labels", type=path, metavar="FILE", help="one label per line, without background; needed with --checkpoint"
    )
    theirs.add_argument(
        "--num-classes",
        type=positive,
        metavar="N",
        help="number of classes with background, checked against the checkpoint (default: the checkpoint's)",
    )
    theirs.add_argument(
        "--batch-norm-epsilon",
        type=not_negative,
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
    graph_options(arguments)  # raises before anything is read
    check_place(arguments.name, arguments.version or 0)
    check_writable(arguments.store)
    folder = publish_run(arguments) if arguments.run else publish_torchvision(arguments)
    card = json.loads((folder / "model.json").read_text())
    results = {
        name: card[name] for name in ("verification", "verification_on_cuda", "graphs", "metrics") if name in card
    }
    print(json.dumps(results, indent=1))
    graphs = {"model.onnx": card["bytes"]} | {one["file"]: one["bytes"] for one in card.get("graphs", {}).values()}
    print(f"published {folder}: " + ", ".join(f"{file} {size / 1e6:.1f} MB" for file, size in graphs.items()))


def graph_options(arguments: argparse.Namespace) -> GraphOptions:
    """Which graphs to publish. Raises ValueError if the options exclude each other."""
    return GraphOptions(arguments.precision, arguments.provider, arguments.cuda_fp16)


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
    if arguments.detections is not None:
        detector.config = with_detections(detector.config, arguments.detections)
    if arguments.white is not None:
        detector.config = replace(detector.config, white=arguments.white)
    record = read_record(arguments.run)
    data = arguments.data or record.data
    reading = Reading(
        skip_bad_boxes=arguments.skip_bad_boxes or record.skip_bad_boxes,
        val_share=val_share_for(arguments, record, data),
        exif_boxes=arguments.exif_boxes or record.exif_boxes,
    )
    labels = detector.config.labels
    test, measured_on = open_test(arguments, data, record.val_split, reading, detector.white)
    test = renumber(test, labels, str(arguments.run))
    validation = open_validation(arguments, data, record.val_split, reading, measured_on, detector.white)
    if validation is not None:
        validation = replace(validation, data=renumber(validation.data, labels, str(arguments.run)))
    return publish(
        detector,
        arguments.store,
        arguments.name,
        version_of(arguments),
        # model.json already holds the detector's own config
        training=replace(record, config=None).to_json() | {"iteration": state["iteration"]},
        images=first_images(test),
        measurement=Measurement(test, measured_on, arguments.limit_images, not arguments.no_example, validation),
        options=graph_options(arguments),
        score_threshold=arguments.score_threshold,
    )


def publish_torchvision(arguments: argparse.Namespace) -> Path:
    """Publishes a torchvision model, with torchvision's weights or those of a checkpoint."""
    if not arguments.data and (
        arguments.split or arguments.limit_images or arguments.skip_bad_boxes or arguments.val_share
    ):
        raise ValueError(
            "--split, --val-share, --limit-images and --skip-bad-boxes need --data; name it, or leave them out"
        )
    trained = read_torchvision(arguments)
    if arguments.detections is not None:
        trained.model.roi_heads.detections_per_img = arguments.detections
    detector = TorchvisionDetector(trained.model)
    labels = trained.labels if arguments.labels is None else read_labels(arguments.labels, detector.classes)
    assert labels is not None
    measurement = None
    detector.white = arguments.white or detector.white
    if arguments.data:
        reading = Reading(arguments.skip_bad_boxes, arguments.val_share, arguments.exif_boxes)
        test, measured_on = open_test(arguments, arguments.data, "val", reading, arguments.white)
        detector.white = white_in(test)
        test = renumber(test, labels, arguments.torchvision)
        validation = open_validation(arguments, arguments.data, "val", reading, measured_on, detector.white)
        if validation is not None:
            validation = replace(validation, data=renumber(validation.data, labels, arguments.torchvision))
        measurement = Measurement(test, measured_on, arguments.limit_images, not arguments.no_example, validation)
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
        options=graph_options(arguments),
        score_threshold=arguments.score_threshold,
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


class Reading(NamedTuple):
    """How the annotations are read: options of `open_checked`."""

    skip_bad_boxes: bool
    val_share: float | None
    exif_boxes: str | None


def open_test(
    arguments: argparse.Namespace, data: str, own: str, reading: Reading, white: int | None
) -> tuple[Dataset, str]:
    """The data that the graph is measured on, and its name in the card.

    own: the split to use if there is no test split;  white: of the detector; None: it is found in the data.
    """
    split = arguments.split or ("test" if "test" in splits_of(data, reading.val_share) else own)
    return open_checked(data, split, arguments.seed, **reading._asdict(), white=white), name_of(arguments, data, split)


def open_validation(
    arguments: argparse.Namespace, data: str, split: str, reading: Reading, measured_on: str, white: int
) -> Validation | None:
    """The data on which the served threshold is chosen; None if these are the data that the graph is measured on.

    Those are used, too, if there is no validation split.
    """
    name = name_of(arguments, data, split)
    if name == measured_on or split not in splits_of(data, reading.val_share):
        return None
    chosen_on = open_checked(data, split, arguments.seed, **reading._asdict(), white=white)
    return Validation(chosen_on, name, arguments.limit_images)


def name_of(arguments: argparse.Namespace, data: str, split: str) -> str:
    """The name of a split in the card."""
    return f"{data}/{split}" + (f", seed {arguments.seed}" if arguments.seed else "")


def first_images(test: Dataset) -> list[np.ndarray]:
    """The images that the graph is verified on."""
    return [test[index].image for index in range(min(VERIFIED_IMAGES, len(test)))]


def version_of(arguments: argparse.Namespace) -> int:
    if arguments.version is None:
        return next_version(arguments.store, arguments.name)
    return int(arguments.version)
