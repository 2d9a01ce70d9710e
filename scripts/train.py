"""Trains a Faster R-CNN.

scripts/train.py --data shapes --backbone compact --out runs/shapes
scripts/train.py --out runs/shapes --resume                        (after an interruption)
scripts/train.py --out runs/shapes --resume --iterations 6500      (to train a finished run further)
"""

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

# PyTorch's threads would spin while they wait for each other and take the cores from the processes that draw pictures:
# 1.4 batches a second instead of 1.7 on two cores. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torchvision

from faster_rcnn.command_line import fail, positive, run_command
from faster_rcnn.config import DetectorConfig, preset
from faster_rcnn.data.sources import check_labels, open_dataset
from faster_rcnn.detector import FasterRCNN
from faster_rcnn.roi_pooling import POOLINGS
from faster_rcnn.training.checkpoint import NAME, load_detector
from faster_rcnn.training.joint import joint_losses
from faster_rcnn.training.loop import OPTIMISERS, TrainingOptions, train

# What suits a backbone: for VGG-16 the paper's (section 3.3).
DEFAULTS: dict[str, dict[str, Any]] = {
    "compact": {"iterations": 4500, "batch_size": 16, "learning_rate": 0.001, "warm_up": 100, "optimiser": "adamw"},
    "vgg16": {"iterations": 80000, "batch_size": 1, "learning_rate": 0.001, "warm_up": 500, "optimiser": "sgd"},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on from RUN's checkpoint, with RUN's options")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run = parser.add_argument_group("what a run is made of")
    run.add_argument("--data", help="shapes (the default), or coco:DIR")
    run.add_argument("--train-split", help="default: train")
    run.add_argument("--val-split", help="default: val")
    run.add_argument("--backbone", choices=sorted(DEFAULTS), help="default: compact")
    run.add_argument("--anchor-scales", type=float, nargs="+", metavar="PIXELS", help="sides of the square anchors")
    run.add_argument("--anchor-ratios", type=float, nargs="+", metavar="RATIO", help="heights over widths")
    run.add_argument("--roi-pooling", choices=sorted(POOLINGS))
    run.add_argument("--schedule", choices=["joint"], help="joint (the default): approximate joint training")
    run.add_argument("--iterations", type=positive, help="batches in all; may be raised with --resume")
    run.add_argument("--batch-size", type=positive, help="pictures a batch")
    run.add_argument("--learning-rate", type=float, help="its highest value; may be lowered with --resume")
    run.add_argument("--warm-up", type=positive, metavar="ITERATIONS", help="until the rate is at its highest")
    run.add_argument("--optimiser", choices=sorted(OPTIMISERS), help="compact: adamw, vgg16: sgd")
    run.add_argument("--validate-every", type=positive, metavar="ITERATIONS")
    run.add_argument("--checkpoint-every", type=positive, metavar="ITERATIONS")
    run.add_argument("--validation-pictures", type=positive)
    run.add_argument("--workers", type=int, help="processes that prepare pictures; may be changed with --resume")
    run.add_argument("--mixed-precision", action=argparse.BooleanOptionalAction, help="where the hardware has it")
    run.add_argument("--seed", type=int)
    return parser.parse_args()


# What may change when a run goes on: the rate of a run that diverged, the length of one that could learn more (its rate
# then follows the longer schedule), and what has no effect on the result.
CHANGEABLE = ("learning_rate", "iterations", "workers")


def main() -> None:
    arguments = parse()
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    folder, resume, device = given.pop("out"), given.pop("resume"), given.pop("device")
    record = folder / "run.json"
    if resume:
        run = resumed_run(folder, given)
        detector = load_detector(folder)
    else:
        if (folder / NAME).exists():
            fail(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
        run = new_run(given, device)
        torch.manual_seed(run["options"]["seed"])
        labels = open_dataset(run["data"], run["train_split"]).labels
        detector = FasterRCNN(configure(given, run["backbone"], labels))
        folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=1) + "\n")
    training = open_dataset(run["data"], run["train_split"])
    validation = open_dataset(run["data"], run["val_split"])
    for dataset in (training, validation):
        check_labels(dataset, detector.config.labels, str(folder))
    options = TrainingOptions(**run["options"])
    losses = joint_losses(options.mixed_precision)
    metrics = train(detector.to(device), losses, training, validation, options, folder, resume)
    run["seconds"] = metrics["seconds"]
    record.write_text(json.dumps(run, indent=1) + "\n")
    print(
        f"{folder}: AP {metrics['AP']}, AP50 {metrics['AP50']} after {options.iterations} batches, {run['seconds']} s"
    )


def resumed_run(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The record of the run in `folder`, with what may be changed of it."""
    if not (folder / NAME).is_file():
        fail(f"{folder / NAME} is not there, so there is nothing to resume; leave out --resume to start")
    if fixed := [f"--{name.replace('_', '-')}" for name in given if name not in CHANGEABLE]:
        fail(f"--resume goes on with the run's own options; leave out {', '.join(fixed)}")
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    if given.get("iterations", run["options"]["iterations"]) < run["options"]["iterations"]:
        fail(f"--iterations of a run can only be raised; {folder} has {run['options']['iterations']}")
    run["options"] |= given
    if given:
        run.setdefault("resumed", []).append(command())
    return run


def command() -> str:
    return shlex.join(["scripts/train.py", *sys.argv[1:]])


def configure(given: dict[str, Any], backbone: str, labels: tuple[str, ...]) -> DetectorConfig:
    """The backbone's preset with what the command line changes of it."""
    changes: dict[str, Any] = {name: tuple(given[name]) for name in ("anchor_scales", "anchor_ratios") if name in given}
    if "roi_pooling" in given:
        changes["roi_pooling"] = given["roi_pooling"]
    return replace(preset(backbone, labels), **changes)


def new_run(given: dict[str, Any], device: str) -> dict[str, Any]:
    """What `run.json` keeps: how the run is made, so that it can be resumed and told of."""
    backbone = given.get("backbone", "compact")
    known = {field.name for field in fields(TrainingOptions)}
    workers = max(1, (os.cpu_count() or 2) // 2)
    chosen = DEFAULTS[backbone] | {"workers": workers} | {name: given[name] for name in given if name in known}
    return {
        "command": command(),
        "data": given.get("data", "shapes"),
        "train_split": given.get("train_split", "train"),
        "val_split": given.get("val_split", "val"),
        "backbone": backbone,
        "schedule": given.get("schedule", "joint"),
        "options": asdict(TrainingOptions(**chosen)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": device,
    }


if __name__ == "__main__":
    run_command(main)
