"""Trains a Faster R-CNN.

faster-rcnn train --data voc:DIR --out runs/mine
faster-rcnn train --data coco:DIR --backbone resnet50_fpn --epochs 20 --out runs/mine
faster-rcnn train --data voc:DIR --backbone vgg16 --schedule alternating --out runs/paper
faster-rcnn train --data voc:DIR --schedule fast-rcnn --proposals selective-search --out runs/fast
faster-rcnn train --data voc:DIR --out runs/mine --resume auto      (begins, or goes on after an interruption)
faster-rcnn train --out runs/mine --resume                          (after an interruption)
faster-rcnn train --out runs/mine --resume --iterations 6500        (to train a finished run further)
torchrun --nproc-per-node 4 scripts/train.py --data … --out …       (on several GPUs)
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# By default PyTorch's threads spin while they wait for each other, which takes the cores from the processes that
# prepare images: 1.4 instead of 1.7 batches per second on two cores. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from faster_rcnn.commands.argument_types import (
    above_zero,
    path,
    pixels,
    positive,
    seed_number,
    share,
    source,
    worker_count,
)
from faster_rcnn.commands.command_line import (
    Parser,
    add_data,
    add_device,
    add_exif_boxes,
    add_val_share,
    add_white,
    check_sizes,
    check_writable,
    data_source,
    device_of,
    required,
    run_command,
)
from faster_rcnn.data.augmentation import AUGMENTATIONS
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.roi_pooling import POOLINGS
from faster_rcnn.training.agreement import check_same_start
from faster_rcnn.training.optimiser import DECAYS, OPTIMISERS
from faster_rcnn.training.processes import process_group, rank
from faster_rcnn.training.run import (
    SCHEDULE_NAMES,
    RunRecord,
    begin_run,
    changed_options,
    has_begun,
    iterations_done,
    read_record,
    resume_run,
)
from faster_rcnn.training.run_folder import check_unused
from faster_rcnn.training.schedules import carry_out
from faster_rcnn.training.waiting import from_first

ALWAYS, AUTO = "always", "auto"  # values of --resume; the first one if none is given


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn train`. Returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(words)
    # The record names the script, because torchrun starts it and the records of older runs name it too.
    command = shlex.join(["scripts/train.py", *words])
    interrupted = "interrupted; if the run has a checkpoint, --resume continues it"
    return run_command(
        "faster-rcnn train",
        lambda: train(arguments, command),
        arguments.out,
        interrupted,
        lambda: how_to_go_on(arguments.out),
    )


def how_to_go_on(folder: Path | None) -> str:
    """What to add to the message of a run that has ended early."""
    with contextlib.suppress(OSError):  # the folder itself may be what is wrong
        if folder is not None and has_begun(folder):
            return "; the last checkpoint is complete, --resume continues from it"
    return ""


def train(arguments: argparse.Namespace, command: str) -> None:
    """Begins the run that the options describe, or resumes it; `command` is kept in its record."""
    user_options = user_options_of(arguments)
    folder: Path = required(arguments.out, "--out", "name the folder of the run")
    if arguments.accept_changed_images and not arguments.resume:
        raise ValueError("--accept-changed-images belongs to --resume; leave it out")
    check_together(user_options, arguments.resume)
    if not arguments.resume:
        data_source(arguments.data)
    if os.environ.get("RANK", "0") == "0":  # the other processes of torchrun do not use the folder
        check_writable(folder)
        check_unused(folder)
    device = device_of(arguments)
    with process_group(device) as own_device:
        check_same_start(vars(arguments))
        record = from_first(lambda: _record(arguments.resume, folder, user_options, command, str(device)))
        if record is None:
            return
        metrics = carry_out(record, folder, own_device, arguments.accept_changed_images)
        if rank() == 0:
            reached = ", ".join(f"{name} {metrics[name]}" for name in ("AP", "AP50", "VOC_mAP") if name in metrics)
            print(f"{folder}: {reached} in {metrics['seconds']} s; plots, predictions and logs are in that folder")


def user_options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the user named, without those that say where and how this command runs."""
    of_command = ("resume", "accept_changed_images", "device", "out")
    options = {name: one for name, one in vars(arguments).items() if one is not None and name not in of_command}
    if options.get("augmentations") == ["none"]:
        options["augmentations"] = []
    return options


def _record(
    resume: str | None, folder: Path, user_options: dict[str, Any], command: str, device: str
) -> RunRecord | None:
    """The record of the run to carry out; None if a run that is to be continued by `--resume auto` is finished."""
    if resume == AUTO and not has_begun(folder):
        data_source(user_options.get("data"))
        resume = None
    if resume is None:
        return begin_run(folder, user_options, command, device)
    if resume == ALWAYS:
        return resume_run(folder, user_options, command)
    began_with = user_options_of(build_parser().parse_args(shlex.split(read_record(folder).command)[1:]))
    record = resume_run(folder, changed_options(read_record(folder), began_with, user_options), command)
    if (done := iterations_done(folder, record)) is None:
        return record
    print(f"{folder} has done its {done} iterations, so nothing is left to do")
    return None


def check_together(user_options: dict[str, Any], resume: str | None) -> None:
    """Raises ValueError for options that contradict each other."""
    check_sizes(user_options)
    if "epochs" not in user_options:
        return
    for other in ("iterations", "step_iterations"):
        if other in user_options:
            raise ValueError(f"--epochs and --{other.replace('_', '-')} both set the length of the run; give one")
    if resume == ALWAYS:
        raise ValueError("--epochs sets the length of a new run; to train one further, give --iterations")
    if user_options.get("data") == "shapes":
        raise ValueError("--data shapes never ends, so it has no epochs; give --iterations")


def build_parser() -> Parser:
    parser = Parser("train", "--data DATA --out RUN [OPTION ...]", __doc__)
    add_data(parser)
    parser.add_argument("--out", type=path, metavar="RUN", help="run folder, created if it does not exist")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=ALWAYS,
        choices=(AUTO, ALWAYS),
        metavar=AUTO,
        help="continue RUN from its checkpoint, with its own options; auto begins it if there is none, and does "
        "nothing if it is finished, so that the same command line can be repeated",
    )
    parser.add_argument(
        "--accept-changed-images",
        action="store_true",
        help="with --resume: continue although images are not those that RUN began with",
    )
    parser.add_argument("--backbone", choices=sorted(BACKBONES), help="backbone of the detector (default: compact)")
    parser.add_argument(
        "--weights",
        type=source,
        metavar="imagenet|none|FILE",
        help="pretrained weights to start from (default: imagenet; for compact: none)",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help="passes over the data, instead of --iterations (default: 30, or more if --iterations would be below 2500)",
    )
    parser.add_argument(
        "--iterations",
        type=positive,
        metavar="N",
        help="batches to train on in total; can be raised with --resume (default: 30 epochs, but at least 2500)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images per iteration, over all processes (default: depends on the backbone)",
    )
    parser.add_argument(
        "--min-size",
        type=pixels,
        metavar="PIXELS",
        help="resize each image's shorter side to this length (default: that of the backbone)",
    )
    parser.add_argument(
        "--max-size",
        type=pixels,
        metavar="PIXELS",
        help="upper limit of the longer side after resizing (default: that of the backbone)",
    )
    parser.add_argument(
        "--mixed-precision",
        action=argparse.BooleanOptionalAction,
        help="compute in bfloat16 where the hardware is faster with it (default: on)",
    )
    add_device(parser)
    _add_data(parser.add_argument_group("data"))
    _add_progress(parser.add_argument_group("length, validation and checkpoints"))
    _add_optimisation(parser.add_argument_group("optimisation"))
    _add_detector(parser.add_argument_group("detector (defaults suit the backbone; vgg16 has the papers')"))
    _add_losses(parser.add_argument_group("targets and losses (defaults are the papers')"))
    _add_schedule(parser.add_argument_group("schedules other than joint training"))
    return parser


def _add_data(group: Any) -> None:
    group.add_argument("--train-split", metavar="SPLIT", help="split to train on (default: train)")
    group.add_argument("--val-split", metavar="SPLIT", help="split to validate on (default: val)")
    add_val_share(group, "0.2")
    group.add_argument(
        "--skip-bad-boxes",
        action="store_true",
        default=None,
        help="leave out images and boxes that `faster-rcnn check` reports as errors",
    )
    add_exif_boxes(group)
    group.add_argument(
        "--with-difficult",
        action="store_true",
        default=None,
        help="also train on the objects that VOC marks as difficult",
    )
    group.add_argument(
        "--augmentations",
        nargs="+",
        choices=(*AUGMENTATIONS, "none"),
        help="random changes to training images (default: flip scale-jitter photometric; for shapes: flip)",
    )
    group.add_argument(
        "--workers",
        type=worker_count,
        metavar="N",
        help="processes that prepare images; can be changed with --resume (default: half of the cores)",
    )
    add_white(group, "found in the training images")


def _add_progress(group: Any) -> None:
    group.add_argument(
        "--validate-every", type=positive, metavar="ITERATIONS", help="iterations between validations (default: 1000)"
    )
    group.add_argument(
        "--checkpoint-every", type=positive, metavar="ITERATIONS", help="iterations between checkpoints (default: 250)"
    )
    group.add_argument(
        "--validation-images",
        dest="validation_pictures",
        type=positive,
        metavar="N",
        help="validate on the first N images of the split (default: 1000; for shapes: 200)",
    )
    group.add_argument("--validation-pictures", type=positive, help=argparse.SUPPRESS)  # its former name
    group.add_argument("--seed", type=seed_number, help="seed of all random numbers (default: 0)")


def _add_optimisation(group: Any) -> None:
    group.add_argument(
        "--optimiser",
        "--optimizer",
        choices=sorted(OPTIMISERS),
        help="optimiser (default: sgd; without pretrained weights: adamw)",
    )
    group.add_argument(
        "--learning-rate",
        type=above_zero,
        metavar="RATE",
        help="highest learning rate; can be changed with --resume (default: depends on the backbone)",
    )
    group.add_argument(
        "--warm-up",
        type=positive,
        metavar="ITERATIONS",
        help="iterations until the rate reaches its highest value (default: 500; without pretrained weights: 100)",
    )
    group.add_argument(
        "--decay",
        choices=sorted(DECAYS),
        help="decay of the learning rate: half a cosine, or one step to a tenth "
        "(default: step; without pretrained weights: cosine)",
    )
    group.add_argument(
        "--accumulate",
        type=positive,
        metavar="N",
        help="split each batch into this many micro-batches, to save memory (default: 1)",
    )


def _add_detector(group: Any) -> None:
    group.add_argument(
        "--trainable-from",
        metavar="STAGE",
        help="first stage of the backbone that is trained: conv3_1, layer2, …, fc6 (default: depends on the backbone)",
    )
    group.add_argument(
        "--anchor-scales",
        type=above_zero,
        nargs="+",
        metavar="PIXELS",
        help="side lengths of the square anchors (default: those of the backbone)",
    )
    group.add_argument(
        "--anchor-ratios",
        type=above_zero,
        nargs="+",
        metavar="RATIO",
        help="height divided by width (default: 0.5 1 2)",
    )
    group.add_argument(
        "--roi-pooling",
        choices=sorted(POOLINGS),
        help="max as in the papers, or align for RoIAlign (default: that of the backbone)",
    )
    group.add_argument("--proposal-nms", type=share, metavar="IOU", help="threshold of NMS in the RPN (default: 0.7)")
    group.add_argument(
        "--detection-nms",
        type=share,
        metavar="IOU",
        help="threshold of NMS for each class (default: 0.5; the papers' results on VOC: 0.3)",
    )
    group.add_argument(
        "--detections",
        type=positive,
        metavar="N",
        help="most detections for an image; raises the numbers of candidates and proposals with it (default: 100)",
    )
    for name, when, text in (
        ("--training-proposals", "in training", "12000 2000"),
        ("--test-proposals", "after training", "6000 300"),
    ):
        group.add_argument(
            name,
            type=positive,
            nargs=2,
            metavar="N",
            help=f"proposals {when}, before and after NMS (the papers: {text})",
        )


def _add_losses(group: Any) -> None:
    group.add_argument(
        "--crossing-anchors",
        choices=["drop", "keep"],
        help="whether training uses anchors that cross the image's border (default: that of the backbone)",
    )
    group.add_argument(
        "--rois",
        type=positive,
        metavar="N",
        help="proposals sampled per image to train the head (default: that of the backbone)",
    )
    group.add_argument(
        "--background-iou",
        type=share,
        nargs=2,
        metavar="IOU",
        help="proposals whose IoU with an object is in this range count as background "
        "(default: 0 to 0.5; for fast-rcnn 0.1 to 0.5, its section 2.3)",
    )
    group.add_argument(
        "--rpn-lambda",
        type=above_zero,
        metavar="λ",
        help="weight of the RPN's box loss (default: 10; with --rpn-normaliser sampled: 1)",
    )
    group.add_argument(
        "--rpn-normaliser",
        choices=["locations", "anchors", "sampled"],
        help="N_reg: the number of locations (as printed in the paper), of all anchors, or of the sampled anchors "
        "(the reference code; default for pyramids)",
    )
    group.add_argument(
        "--rpn-beta",
        type=above_zero,
        metavar="β",
        help="absolute error from which the RPN's smooth L1 loss is linear: 1 as printed, 0.111 in the reference code",
    )
    group.add_argument(
        "--head-beta",
        type=above_zero,
        metavar="β",
        help="absolute error from which the head's smooth L1 loss is linear: 1 as printed and in the reference code",
    )
    group.add_argument(
        "--target-normalisation",
        choices=["fixed", "measured", "none"],
        help="fixed: deviations of 0.1 and 0.2 (default); measured: those of the training set (fast-rcnn only)",
    )


def _add_schedule(group: Any) -> None:
    group.add_argument(
        "--schedule",
        choices=SCHEDULE_NAMES,
        help="joint: approximate joint training (default); alternating: the four steps of section 3.2; "
        "fast-rcnn: the head alone, on --proposals",
    )
    group.add_argument(
        "--step-iterations",
        type=positive,
        nargs=4,
        metavar="N",
        help="alternating: length of each step (default: --iterations divided 2:1:2:1)",
    )
    group.add_argument(
        "--proposals",
        type=source,
        nargs="+",
        metavar="SOURCE",
        help="fast-rcnn: sliding-window, selective-search, rpn:RUN or FILE.npz; "
        "give two files, training first, if each holds one split",
    )
    group.add_argument(
        "--proposal-limit", type=positive, metavar="N", help="fast-rcnn: best proposals per image (default: 2000)"
    )


if __name__ == "__main__":
    sys.exit(main())
