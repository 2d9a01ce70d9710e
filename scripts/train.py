"""Trains a Faster R-CNN.

scripts/train.py --data shapes --backbone compact --out runs/shapes
scripts/train.py --out runs/shapes --resume
"""

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

# PyTorch's threads would spin while they wait for each other and take the cores from the processes that draw pictures:
# 1.4 batches a second instead of 1.7 on two cores. OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torchvision

from faster_rcnn.command_line import fail, run_command
from faster_rcnn.config import DetectorConfig, preset
from faster_rcnn.data.sources import open_dataset
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
    parser.add_argument("--data", default="shapes", help="shapes, or coco:DIR")
    parser.add_argument("--backbone", choices=sorted(DEFAULTS), default="compact")
    parser.add_argument("--anchor-scales", type=float, nargs="+", metavar="PIXELS", help="sides of the square anchors")
    parser.add_argument("--anchor-ratios", type=float, nargs="+", metavar="RATIO", help="heights over widths")
    parser.add_argument("--roi-pooling", choices=sorted(POOLINGS))
    parser.add_argument("--schedule", choices=["joint"], default="joint", help="joint: approximate joint training")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on from RUN's checkpoint, with RUN's options")
    parser.add_argument("--iterations", type=int, help="batches in all")
    parser.add_argument("--batch-size", type=int, help="pictures a batch")
    parser.add_argument("--learning-rate", type=float, help="its highest value")
    parser.add_argument("--warm-up", type=int, help="batches until then")
    parser.add_argument("--optimiser", choices=sorted(OPTIMISERS), help="compact: adamw, vgg16: sgd")
    parser.add_argument("--validate-every", type=int, default=1000, metavar="ITERATIONS")
    parser.add_argument("--checkpoint-every", type=int, default=250, metavar="ITERATIONS")
    parser.add_argument("--validation-pictures", type=int, default=200)
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes that prepare pictures"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-mixed-precision", action="store_true", help="compute everything in float32")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    folder: Path = arguments.out
    record = folder / "run.json"
    if arguments.resume:
        if not (folder / NAME).is_file():
            fail(f"{folder / NAME} is not there, so there is nothing to resume; leave out --resume to start")
        run = json.loads(record.read_text())
        detector = load_detector(folder)
    else:
        if (folder / NAME).exists():
            fail(f"{folder} holds a run already; add --resume to go on with it, or choose another --out")
        run = new_run(arguments)
        torch.manual_seed(run["options"]["seed"])
        detector = FasterRCNN(configure(arguments, open_dataset(run["data"], "train").labels))
        folder.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(run, indent=1) + "\n")
    options = TrainingOptions(**run["options"])
    metrics = train(
        detector.to(arguments.device),
        joint_losses(options.mixed_precision),
        open_dataset(run["data"], "train"),
        open_dataset(run["data"], "val"),
        options,
        folder,
        arguments.resume,
    )
    run["seconds"] = metrics["seconds"]
    record.write_text(json.dumps(run, indent=1) + "\n")
    print(
        f"{folder}: AP {metrics['AP']}, AP50 {metrics['AP50']} after {options.iterations} batches, {run['seconds']} s"
    )


def configure(arguments: argparse.Namespace, labels: tuple[str, ...]) -> DetectorConfig:
    """The backbone's preset with what the command line changes of it."""
    changes: dict[str, Any] = {}
    if arguments.anchor_scales:
        changes["anchor_scales"] = tuple(arguments.anchor_scales)
    if arguments.anchor_ratios:
        changes["anchor_ratios"] = tuple(arguments.anchor_ratios)
    if arguments.roi_pooling:
        changes["roi_pooling"] = arguments.roi_pooling
    return replace(preset(arguments.backbone, labels), **changes)


def new_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `run.json` keeps: how the run is made, so that it can be resumed and told of."""
    chosen = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in DEFAULTS[arguments.backbone].items()
    }
    options = TrainingOptions(
        **chosen,
        validate_every=arguments.validate_every,
        checkpoint_every=arguments.checkpoint_every,
        validation_pictures=arguments.validation_pictures,
        workers=arguments.workers,
        seed=arguments.seed,
        mixed_precision=not arguments.no_mixed_precision,
    )
    return {
        "command": shlex.join(["scripts/train.py", *sys.argv[1:]]),
        "data": arguments.data,
        "backbone": arguments.backbone,
        "schedule": arguments.schedule,
        "options": asdict(options),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "device": arguments.device,
    }


if __name__ == "__main__":
    run_command(main)
