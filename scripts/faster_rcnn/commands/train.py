"""Trains a Faster R-CNN.

scripts/train.py --data voc:DIR --out runs/mine
scripts/train.py --data coco:DIR --backbone resnet50_fpn --out runs/mine
scripts/train.py --data voc:DIR --backbone vgg16 --schedule alternating --out runs/paper
scripts/train.py --data voc:DIR --schedule fast-rcnn --proposals selective-search --out runs/fast
scripts/train.py --out runs/mine --resume                          (after an interruption)
scripts/train.py --out runs/mine --resume --iterations 6500        (to train a finished run further)
torchrun --nproc-per-node 4 scripts/train.py --data … --out …      (on several GPUs)
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

# PyTorch's threads would spin while they wait for each other and take the cores from the processes that draw images:
# 1.4 batches a second instead of 1.7 on two cores. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from faster_rcnn.commands.command_line import above_zero, positive, run_command, share, usable_device
from faster_rcnn.data.augmentation import AUGMENTATIONS
from faster_rcnn.detector.backbones import BACKBONES
from faster_rcnn.detector.roi_pooling import POOLINGS
from faster_rcnn.training.options import DECAYS, OPTIMISERS
from faster_rcnn.training.processes import process_group, rank
from faster_rcnn.training.recipe import SCHEDULE_NAMES, begun_run, resumed_run
from faster_rcnn.training.schedules import carry_out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on from RUN's checkpoint, with RUN's options")
    parser.add_argument("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu")
    _add_data(parser.add_argument_group("data"))
    _add_detector(parser.add_argument_group("detector (defaults suit the backbone; vgg16 has the papers')"))
    _add_losses(parser.add_argument_group("targets and losses (defaults are the papers')"))
    _add_schedule(parser.add_argument_group("schedule"))
    _add_course(parser.add_argument_group("course of the run"))
    return parser.parse_args()


def _add_data(group: Any) -> None:
    group.add_argument("--data", help="voc:DIR, coco:DIR, or shapes (the default)")
    group.add_argument("--train-split", metavar="SPLIT", help="default: train")
    group.add_argument("--val-split", metavar="SPLIT", help="default: val")
    group.add_argument("--skip-bad-boxes", action="store_true", default=None, help="leave out what the check refuses")
    group.add_argument(
        "--with-difficult", action="store_true", default=None, help="train on VOC's difficult objects too"
    )
    group.add_argument(
        "--augmentations",
        nargs="+",
        choices=(*AUGMENTATIONS, "none"),
        help="default: flip scale-jitter photometric; for shapes: flip",
    )


def _add_detector(group: Any) -> None:
    group.add_argument("--backbone", choices=sorted(BACKBONES), help="default: compact")
    group.add_argument("--weights", metavar="imagenet|none|FILE", help="default: imagenet; for compact none")
    group.add_argument("--trainable-from", metavar="STAGE", help="the first stage that learns: conv3_1, layer2, …, fc6")
    group.add_argument("--min-size", type=positive, metavar="PIXELS", help="images' shorter side, as long as")
    group.add_argument("--max-size", type=positive, metavar="PIXELS", help="the longer does not exceed this")
    group.add_argument(
        "--anchor-scales", type=above_zero, nargs="+", metavar="PIXELS", help="sides of the square anchors"
    )
    group.add_argument("--anchor-ratios", type=above_zero, nargs="+", metavar="RATIO", help="heights over widths")
    group.add_argument("--roi-pooling", choices=sorted(POOLINGS), help="max as in the papers, or RoIAlign")
    group.add_argument("--proposal-nms", type=share, metavar="IOU", help="default: 0.7")
    group.add_argument("--detection-nms", type=share, metavar="IOU", help="default: 0.5; the papers' VOC results: 0.3")
    for name, text in (("--training-proposals", "12000 2000"), ("--test-proposals", "6000 300")):
        group.add_argument(
            name, type=positive, nargs=2, metavar="N", help=f"before and after suppression; the papers': {text}"
        )


def _add_losses(group: Any) -> None:
    group.add_argument("--crossing-anchors", choices=["drop", "keep"], help="those that cross the image's border")
    group.add_argument("--rois", type=positive, metavar="N", help="regions an image that the head learns from")
    group.add_argument(
        "--background-iou",
        type=share,
        nargs=2,
        metavar="IOU",
        help="of a background region with an object: 0 to 0.5; in fast-rcnn 0.1 to 0.5 (its section 2.3)",
    )
    group.add_argument(
        "--rpn-lambda",
        type=above_zero,
        metavar="λ",
        help="weight of the RPN's box loss (default: 10; 1 where N_reg is sampled)",
    )
    group.add_argument(
        "--rpn-normaliser",
        choices=["locations", "anchors", "sampled"],
        help="N_reg: locations as printed, all anchors, or the sampled ones (the reference code, λ = 1; pyramids)",
    )
    group.add_argument("--rpn-beta", type=above_zero, metavar="β", help="of smooth L1; 1 as printed, 0.111 in the code")
    group.add_argument("--head-beta", type=above_zero, metavar="β", help="of smooth L1; 1 as printed and in the code")
    group.add_argument(
        "--target-normalisation",
        choices=["fixed", "measured", "none"],
        help="fixed (the default): deviations 0.1 and 0.2; measured (fast-rcnn only): those of the training set",
    )


def _add_schedule(group: Any) -> None:
    group.add_argument("--schedule", choices=SCHEDULE_NAMES, help="joint (the default): approximate joint training")
    group.add_argument(
        "--proposals",
        nargs="+",
        metavar="SOURCE",
        help="fast-rcnn: sliding-window, selective-search, rpn:RUN or FILE.npz; two files if each has one split",
    )
    group.add_argument("--proposal-limit", type=positive, metavar="N", help="of the source's best (default: 2000)")
    group.add_argument("--iterations", type=positive, help="batches in all; may be raised with --resume")
    group.add_argument(
        "--step-iterations", type=positive, nargs=4, metavar="N", help="alternating: default 2:1:2:1 of --iterations"
    )
    group.add_argument("--batch-size", type=positive, help="images a step, over all processes")
    group.add_argument("--accumulate", type=positive, metavar="PARTS", help="compute a batch in parts, to save memory")
    group.add_argument("--learning-rate", type=above_zero, help="its highest value; may be lowered with --resume")
    group.add_argument("--warm-up", type=positive, metavar="ITERATIONS", help="until the rate is at its highest")
    group.add_argument("--decay", choices=sorted(DECAYS), help="of the rate: half a cosine, or a step to a tenth")
    group.add_argument("--optimiser", choices=sorted(OPTIMISERS), help="default: sgd, or adamw without weights")
    group.add_argument("--mixed-precision", action=argparse.BooleanOptionalAction, help="where the hardware has it")
    group.add_argument("--seed", type=int)


def _add_course(group: Any) -> None:
    group.add_argument("--validate-every", type=positive, metavar="ITERATIONS")
    group.add_argument("--checkpoint-every", type=positive, metavar="ITERATIONS")
    group.add_argument(
        "--validation-pictures", type=positive, metavar="N", help="the first of the split (default: 1000; shapes: 200)"
    )
    group.add_argument("--workers", type=int, help="processes that prepare images; may be changed with --resume")


def main() -> None:
    arguments = parse()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    folder, resume, device = given.pop("out"), given.pop("resume"), given.pop("device")
    if given.get("augmentations") == ["none"]:
        given["augmentations"] = []
    command = shlex.join(["scripts/train.py", *sys.argv[1:]])
    with process_group(device) as own_device:
        run = resumed_run(folder, given, command) if resume else begun_run(folder, given, command, str(device))
        metrics = carry_out(run, folder, own_device)
        if rank() == 0:
            reached = ", ".join(f"{name} {metrics[name]}" for name in ("AP", "AP50", "VOC_mAP") if name in metrics)
            print(f"{folder}: {reached} in {metrics['seconds']} s; its plots, predictions and logs lie there")


if __name__ == "__main__":
    run_command(main)
