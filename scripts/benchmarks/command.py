"""Measures a graph, by itself or against torchvision's own code, or the service under load.

    scripts/benchmark.py graph model_store/shapes/1
    scripts/benchmark.py graph --torchvision fasterrcnn_mobilenet_v3_large_320_fpn --batches 1 8 --out measured
    scripts/benchmark.py graph --torchvision fasterrcnn_resnet50_fpn_v2 --checkpoint mine.pth --provider cuda \\
        --precision fp16 --size 800 1333
    scripts/benchmark.py service                            about eight minutes; starts and stops its own servers
    scripts/benchmark.py service --pictures photographs --out measured
    scripts/benchmark.py service --url http://127.0.0.1:8000
    scripts/benchmark.py service --soak 60                  an hour of random sizes; memory must not grow

Machines are noisy: every comparison is made inside one run, its parts taken in turns, and given as a ratio. Only
--torchvision needs torch, so a published model is measured by the same installation that serves it.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.load import measure_service as load  # noqa: E402
from benchmarks.load.soak import soak  # noqa: E402
from benchmarks.measure_graph import Options, measure_graph  # noqa: E402  after the path for `service`
from benchmarks.workers import Failed  # noqa: E402
from service.engine.engine import CPU, CUDA, pick_provider, usable_cores  # noqa: E402
from service.engine.model import Refused  # noqa: E402

EMBEDDED = ROOT / "model_store/shapes/1"
_EXAMPLE = EMBEDDED / "example.jpg"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}


def graph(arguments: argparse.Namespace) -> None:
    folder = arguments.model
    if arguments.torchvision is None:
        for option in ("weights", "checkpoint", "size"):
            if getattr(arguments, option) is not None:
                raise Failed(f"--{option} is for --torchvision; leave it out")
        folder = folder or EMBEDDED
    if folder is not None and arguments.precision is not None:
        raise Failed("--precision is for a graph that is exported here; leave it out, or leave out the folder")
    example = folder / "example.jpg" if folder else EMBEDDED / "example.jpg"
    measure_graph(
        Options(
            folder=folder,
            builder=arguments.torchvision,
            weights=arguments.weights,
            checkpoint=arguments.checkpoint,
            precision=arguments.precision or "fp32",
            image=arguments.image or (example if example.exists() else EMBEDDED / "example.jpg"),
            size=tuple(arguments.size) if arguments.size else None,
            provider=_provider(arguments.provider),
            batches=tuple(sorted(set(arguments.batches))),
            threads=arguments.threads or usable_cores(),
            seconds=arguments.seconds,
            out=arguments.out,
        )
    )


def service(arguments: argparse.Namespace) -> None:
    folder = arguments.model or EMBEDDED
    image = arguments.image or (example if (example := folder / "example.jpg").exists() else _EXAMPLE)
    # a service elsewhere answers with the model that it prefers, unless one is named
    path = f"/detect?model={folder.parent.name}&version={folder.name}" if arguments.model else "/detect"
    if arguments.soak is not None:
        soak(folder, image, arguments.url, path, arguments.soak, arguments.seed)
        return
    load.measure_service(
        load.Options(
            folder=folder,
            image=image,
            images=arguments.images,
            url=arguments.url,
            path=path,
            clients=tuple(sorted(set(arguments.clients))),
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            seed=arguments.seed,
            out=arguments.out,
        )
    )


def _provider(wanted: str | None) -> str:
    best = pick_provider()
    if wanted == "cuda" and best != CUDA:
        raise Failed("CUDA cannot be used on this machine; take --provider cpu, or see that nvidia-smi shows a GPU")
    return best if wanted is None else PROVIDERS[wanted]


def _above_zero(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _add_graph(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--torchvision", metavar="BUILDER", help="export this torchvision detector, and measure it against torchvision"
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument("--weights", choices=("COCO_V1",), help="torchvision's own (default: random weights, seeded)")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="a state dict of the builder's model")
    command.add_argument("--precision", choices=("fp32", "fp16"), help="of what is exported here (default: fp32)")
    command.add_argument("--provider", choices=("cpu", "cuda"), help="default: cuda where it works")
    command.add_argument("--batches", type=_positive, nargs="+", default=(1, 2, 4, 8), metavar="N", help="1 2 4 8")
    command.add_argument(
        "--size",
        type=_positive,
        nargs=2,
        metavar=("H", "W"),
        help="of the image that the network sees (default: what the model's own rule makes of the image)",
    )
    command.add_argument("--threads", type=_positive, help="of every contender on a CPU (default: usable cores)")
    command.add_argument("--seconds", type=_above_zero, default=0.5, help="of each turn; there are five a row")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="also write benchmark.md and benchmark.png here")


def _add_service(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help="a service that runs already (default: one of its own, beside a plain server)")
    command.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="send JPEGs of this folder (default: --picture at six sizes)"
    )
    command.add_argument(
        "--clients", type=_positive, nargs="+", default=load.CLIENTS, metavar="N", help="default: 1 4 16 64"
    )
    command.add_argument("--seconds", type=_above_zero, default=4.0, help="of each turn (default: 4)")
    command.add_argument(
        "--rounds", type=_positive, default=3, help="turns of each contender at each load (default: 3)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the arrivals and of what is drawn from a folder")
    command.add_argument("--soak", type=_above_zero, metavar="MINUTES", help="one load of random sizes instead")
    command.add_argument("--out", type=Path, metavar="FOLDER", help="also write benchmark.md and benchmark.png here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run, add, help_text in (
        (
            "graph",
            graph,
            _add_graph,
            "images/s, latency, memory and stages by batch size, against torchvision or one by one",
        ),
        ("service", service, _add_service, "throughput, latency, CPU and memory under load, against a plain server"),
    ):
        command = commands.add_parser(
            name, help=help_text, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.set_defaults(run=run)
        command.add_argument("model", type=Path, nargs="?", metavar="MODEL_DIR", help="default: model_store/shapes/1")
        command.add_argument("--picture", type=Path, help="default: example.jpg of the model")
        add(command)
    arguments = parser.parse_args()
    if arguments.model is not None:
        arguments.model = arguments.model.resolve()
    try:
        arguments.run(arguments)
    except (Refused, Failed, OSError, ValueError) as error:
        sys.exit(f"benchmark: {error}")
    except ImportError as error:
        installed = "scripts/bootstrap dev installs what --torchvision and --out need"
        sys.exit(f"benchmark: {error.name} is not installed; {installed}")
    except KeyboardInterrupt:
        sys.exit("benchmark: interrupted; what was measured is lost")


if __name__ == "__main__":
    main()
