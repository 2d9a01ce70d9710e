"""Measures a run's detector in PyTorch, or a published model through the service's own code.

scripts/evaluate.py runs/shapes --data shapes --split test
scripts/evaluate.py model_store/shapes/1 --data shapes --split test
"""

import argparse
import json
from pathlib import Path

from faster_rcnn.command_line import run_command
from faster_rcnn.data.sources import check_labels, open_dataset
from faster_rcnn.evaluation import evaluate, torch_predictor
from faster_rcnn.graph.serving import onnx_predictor
from faster_rcnn.training.checkpoint import load_detector


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, metavar="RUN|MODEL_DIR", help="a run's folder or a published version's")
    parser.add_argument("--data", default="shapes", help="shapes, or coco:DIR")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures that shapes draws (default: %(default)s)")
    parser.add_argument("--pictures", type=int, help="measure on this many (default: all)")
    parser.add_argument("--out", type=Path, help="where metrics.json goes (default: RUN, else the current folder)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    target: Path = arguments.target
    published = (target / "model.onnx").is_file()
    dataset = open_dataset(arguments.data, arguments.split, arguments.seed)
    if published:
        predict, labels = onnx_predictor(target), tuple(json.loads((target / "model.json").read_text())["labels"])
    else:
        detector = load_detector(target)
        predict, labels = torch_predictor(detector), detector.config.labels
    check_labels(dataset, labels, str(target))
    metrics = evaluate(dataset, predict, arguments.pictures)
    record = {"target": str(target), "data": f"{arguments.data}/{arguments.split}", "seed": arguments.seed, **metrics}
    out: Path = arguments.out or (Path() if published else target)
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    run_command(main)
