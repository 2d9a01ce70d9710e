"""Publishes a trained detector as a model that the service can load.

    scripts/export.py runs/shapes --name shapes

The graph is verified before it is published: ONNX Runtime against PyTorch, batches against single pictures, large
canvases against tight ones. What does not agree is not published.
"""

import argparse
import json
from pathlib import Path

from faster_rcnn.command_line import run_command
from faster_rcnn.data.pictures import open_checked
from faster_rcnn.data.sources import check_labels, splits_of
from faster_rcnn.graph.publish import next_version, publish
from faster_rcnn.training.checkpoint import best_or_last, build_detector, read_checkpoint
from faster_rcnn.training.recipe import read_run
from faster_rcnn.training.runs import check_finished

VERIFIED_PICTURES = 24


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--name", required=True, help="the model's name in the store")
    parser.add_argument("--version", type=int, help="its version (default: one more than the highest)")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="default: %(default)s")
    parser.add_argument("--data", help="what the published graph is measured on (default: the run's own data)")
    parser.add_argument("--split", help="its split (default: test, or the run's validation split where there is none)")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="default: RUN's best, if it has one")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures that shapes draws (default: %(default)s)")
    parser.add_argument(
        "--skip-bad-boxes", action="store_true", help="leave out what the check refuses (default: as RUN did)"
    )
    parser.add_argument("--pictures", type=int, help="measure on this many (default: all)")
    parser.add_argument(
        "--no-example",
        action="store_true",
        help="put no picture of the data beside the model: it may not be yours to give",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
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
    split = arguments.split or ("test" if "test" in splits_of(data) else own)
    skip = arguments.skip_bad_boxes or record.get("skip_bad_boxes", False)
    test = open_checked(data, split, arguments.seed, skip)
    check_labels(test, detector.config.labels, str(arguments.run))
    version = arguments.version or next_version(arguments.store, arguments.name)
    folder = publish(
        detector,
        arguments.store,
        arguments.name,
        version,
        training=record,
        measured_on=f"{data}/{split}" + (f", seed {arguments.seed}" if arguments.seed else ""),
        test=test,
        pictures=[test[index].image for index in range(min(VERIFIED_PICTURES, len(test)))],
        limit=arguments.pictures,
        example=not arguments.no_example,
    )
    card = json.loads((folder / "model.json").read_text())
    print(json.dumps({"verification": card["verification"], "metrics": card["metrics"]}, indent=1))
    print(f"published {folder}, {card['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main)
