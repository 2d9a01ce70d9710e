r"""Measures a graph, by itself or against torchvision's own code, or the service under load or under siege.

    faster-rcnn benchmark graph model_store/shapes/1
    faster-rcnn benchmark graph --torchvision fasterrcnn_mobilenet_v3_large_320_fpn --batches 1 8 --out measured
    faster-rcnn benchmark graph --torchvision fasterrcnn_resnet50_fpn_v2 --checkpoint mine.pth --device cuda \
        --precision fp16 --size 800 1333
    faster-rcnn benchmark service                       about eight minutes; starts and stops its own servers
    faster-rcnn benchmark service --folder photographs --out measured
    faster-rcnn benchmark service --url http://127.0.0.1:8000
    faster-rcnn benchmark service --soak 60             one hour of random sizes; memory must not grow
    faster-rcnn benchmark siege                         a good client beside hostile ones; about twenty minutes
    faster-rcnn benchmark siege --kinds slow-body idle --clients 500
    faster-rcnn benchmark siege --kinds idle-keepalive --clients 2000 --nofile 1024
    faster-rcnn benchmark worst --memory 2000           the worst images at once in 2000 MB, beside small ones
    faster-rcnn benchmark fleet                         three replicas behind HAProxy: its cost, drains, kills, rollouts
    faster-rcnn benchmark gpu --out measured            what is promised of a GPU, checked on this one in ten minutes
    faster-rcnn benchmark gpu --only C1 C8              some of the checks (docs/gpu.md explains each)
    faster-rcnn benchmark gpu --pack DIR --architecture 90   a package of all that a machine without a network needs

Machines are noisy: every comparison is made inside one run, the contenders take turns, and the results are ratios. Only
--torchvision needs torch, so a published model can be measured by the same installation that serves it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fleet.measure_fleet import Options as FleetOptions
from benchmarks.fleet.measure_fleet import measure_fleet
from benchmarks.gpu.checks import NUMBERS
from benchmarks.gpu.measure_gpu import Options as GpuOptions
from benchmarks.gpu.measure_gpu import measure_gpu
from benchmarks.gpu.packing import pack
from benchmarks.load import measure_service as load
from benchmarks.load.soak import soak
from benchmarks.measure_graph import Options, measure_graph
from benchmarks.siege import measure_siege as siege
from benchmarks.siege.attackers import KINDS
from benchmarks.siege.measure_worst import Options as WorstOptions
from benchmarks.siege.measure_worst import measure_worst
from benchmarks.siege.worst_images import SIDE
from benchmarks.workers import Failed
from faster_rcnn.commands.argument_types import above_zero, positive
from faster_rcnn.commands.command_line import Parser, run_command
from service.engine.cores import usable_cores
from service.engine.model import ModelRefusedError
from service.engine.providers import CPU, CUDA, ProviderUnavailableError, pick_provider

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "model_store/shapes/1"
_EXAMPLE = EMBEDDED / "example.jpg"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}


def main(argv: Sequence[str] | None = None) -> int:
    """`faster-rcnn benchmark`. Returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = Parser("benchmark", "graph|service|siege|worst|fleet|gpu [MODEL_DIR] [OPTION ...]", __doc__)
    parser.add_argument(
        "what",
        choices=("graph", "service", "siege", "worst", "fleet", "gpu"),
        help="what to measure; `graph --help` and so on list the options",
    )
    what: str = parser.parse_args(words[:1]).what
    measure, build = {
        "graph": (measure_a_graph, graph_parser),
        "service": (measure_a_service, service_parser),
        "siege": (measure_a_siege, siege_parser),
        "worst": (measure_the_worst, worst_parser),
        "fleet": (measure_a_fleet, fleet_parser),
        "gpu": (measure_a_gpu, gpu_parser),
    }[what]
    arguments = build().parse_args(words[1:])
    interrupted = "interrupted; what was measured is lost"
    return run_command(
        f"faster-rcnn benchmark {what}", lambda: _measure(measure, arguments), arguments.out, interrupted
    )


def _measure(measure: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Raises ValueError if the measurement could not be made, or needs a package that is not installed."""
    if getattr(arguments, "model", None) is not None:
        arguments.model = arguments.model.resolve()
    try:
        measure(arguments)
    except (ModelRefusedError, ProviderUnavailableError, Failed) as error:
        raise ValueError(str(error)) from error
    except ImportError as error:
        installed = "scripts/bootstrap dev installs what --torchvision and --out need"
        raise ValueError(f"{error.name} is not installed; {installed}") from error


def measure_a_graph(arguments: argparse.Namespace) -> None:
    folder = arguments.model
    if arguments.torchvision is None:
        for option in ("weights", "checkpoint", "size"):
            if getattr(arguments, option) is not None:
                raise Failed(f"--{option} is for --torchvision; leave it out")
        folder = folder or EMBEDDED
    if folder is not None and arguments.precision is not None:
        raise Failed("--precision is for a graph that is exported here; leave it out, or leave out MODEL_DIR")
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
            provider=_provider(arguments.device),
            batches=tuple(sorted(set(arguments.batches))),
            threads=arguments.threads or usable_cores(),
            seconds=arguments.seconds,
            out=arguments.out,
        )
    )


def measure_a_service(arguments: argparse.Namespace) -> None:
    folder, image, path = _model_and_image(arguments)
    if arguments.soak is not None:
        soak(folder, image, arguments.url, path, arguments.soak, arguments.seed, arguments.out)
        return
    load.measure_service(
        load.Options(
            folder=folder,
            image=image,
            images=arguments.folder,
            url=arguments.url,
            path=path,
            clients=tuple(sorted(set(arguments.clients))),
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            seed=arguments.seed,
            out=arguments.out,
        )
    )


def measure_a_siege(arguments: argparse.Namespace) -> None:
    if arguments.url is not None and arguments.nofile is not None:
        raise Failed("--nofile is for a service that is started here; leave out --url")
    folder, image, path = _model_and_image(arguments)
    siege.measure_siege(
        siege.Options(
            folder=folder,
            image=image,
            url=arguments.url,
            path=path,
            kinds=tuple(dict.fromkeys(arguments.kinds)),
            clients=tuple(sorted(set(arguments.clients))),
            requests=arguments.requests,
            rounds=arguments.rounds,
            addresses=arguments.addresses,
            nofile=arguments.nofile,
            large_side=arguments.large_side,
            seed=arguments.seed,
            out=arguments.out,
        )
    )


def measure_the_worst(arguments: argparse.Namespace) -> None:
    folder, image, _ = _model_and_image(arguments)
    measure_worst(
        WorstOptions(
            folder=folder,
            image=image,
            memory=arguments.memory * 10**6,
            images=arguments.images,
            side=arguments.side,
            rounds=arguments.rounds,
            out=arguments.out,
        )
    )


def measure_a_fleet(arguments: argparse.Namespace) -> None:
    folder, image, _ = _model_and_image(arguments)
    measure_fleet(
        FleetOptions(
            folder=folder,
            image=image,
            clients=arguments.clients,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            out=arguments.out,
        )
    )


def measure_a_gpu(arguments: argparse.Namespace) -> None:
    if (arguments.pack is None) != (arguments.architecture is None):
        raise Failed("--pack and --architecture belong together: name the folder, and the GPU's architecture")
    if arguments.pack is not None:
        pack(arguments.pack, arguments.architecture, arguments.models)
        return
    provider = _provider(arguments.provider or "cuda")
    measure_gpu(GpuOptions(provider, arguments.only, arguments.models, arguments.out))


def _model_and_image(arguments: argparse.Namespace) -> tuple[Path, Path, str]:
    """The model's folder, the image to send, and the path to send it to."""
    folder = arguments.model or EMBEDDED
    image = arguments.image or (example if (example := folder / "example.jpg").exists() else _EXAMPLE)
    # A service elsewhere answers with its default model unless one is named.
    path = f"/detect?model={folder.parent.name}&version={folder.name}" if arguments.model else "/detect"
    return folder, image, path


def _provider(wanted: str | None) -> str:
    best = pick_provider()
    if wanted == "cuda" and best != CUDA:
        raise Failed("CUDA cannot be used on this machine; use --device cpu, or check that nvidia-smi shows a GPU")
    return best if wanted is None else PROVIDERS[wanted]


def graph_parser() -> Parser:
    about = "Images per second, latency, memory and stages by batch size, of one model or against torchvision."
    parser = Parser("benchmark graph", "[MODEL_DIR] [OPTION ...]", about)
    _add_model(parser)
    parser.add_argument(
        "--torchvision", metavar="BUILDER", help="export this torchvision detector, and measure it against torchvision"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", choices=("COCO_V1",), help="torchvision's pretrained weights (default: random weights, seeded)"
    )
    source.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="state dict of the builder's model, instead of --weights"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16"), help="precision of the exported graph (default: fp32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device to run on (default: cuda if usable)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), dest="device", help=argparse.SUPPRESS)  # former name
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=(1, 2, 4, 8), metavar="N", help="batch sizes (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        metavar=("H", "W"),
        help="size of the image that the network sees (default: the model's own rule, applied to the image)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of every contender on a CPU (default: the usable cores)"
    )
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=0.5,
        help="length of each turn; every figure is measured in five turns (default: 0.5)",
    )
    _add_out(parser)
    return parser


def service_parser() -> Parser:
    about = "Throughput, latency, processor time and memory of the service under load, against a plain server."
    parser = Parser("benchmark service", "[MODEL_DIR] [OPTION ...]", about)
    _add_model(parser)
    parser.add_argument("--url", help="address of a running service (default: start one, and a plain server)")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="send the JPEGs in this folder (default: --image at six sizes)"
    )
    parser.add_argument(
        "--clients",
        type=positive,
        nargs="+",
        default=load.CLIENTS,
        metavar="N",
        help="numbers of clients in the closed loop (default: 1 4 16 64)",
    )
    parser.add_argument("--seconds", type=above_zero, default=4.0, help="length of each turn (default: 4)")
    parser.add_argument(
        "--rounds", type=positive, default=3, metavar="N", help="turns of each contender at each load (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument(
        "--soak",
        type=above_zero,
        metavar="MINUTES",
        help="instead, send images of random sizes for this long and watch the memory; --out keeps every sample",
    )
    _add_out(parser)
    return parser


def siege_parser() -> Parser:
    about = "A well-behaved client alone and beside hostile clients: its answers, and the service's memory."
    parser = Parser("benchmark siege", "[MODEL_DIR] [OPTION ...]", about)
    _add_model(parser)
    parser.add_argument("--url", help="address of a running service (default: start one for each kind and number)")
    parser.add_argument(
        "--kinds", choices=KINDS, nargs="+", default=tuple(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--clients",
        type=positive,
        nargs="+",
        default=siege.CLIENTS,
        metavar="N",
        help="numbers of hostile clients (default: 500 2000; at most 64 are greedy or send garbage)",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=siege.REQUESTS,
        metavar="N",
        help=f"images that the well-behaved client sends in a turn, at most ten a second (default: {siege.REQUESTS})",
    )
    parser.add_argument(
        "--rounds", type=positive, default=2, metavar="N", help="turns alone and beside the others (default: 2)"
    )
    parser.add_argument(
        "--addresses",
        type=positive,
        default=0,
        metavar="N",
        help="addresses 127.1.0.1 and so on of the hostile clients (default: the well-behaved client's own)",
    )
    parser.add_argument(
        "--nofile", type=positive, metavar="N", help="start the service with at most N file descriptors (ulimit -n)"
    )
    parser.add_argument(
        "--large-side",
        type=positive,
        default=siege.LARGE_SIDE,
        metavar="PIXELS",
        help=f"side of the large images that hostile clients send (default: {siege.LARGE_SIDE})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    _add_out(parser)
    return parser


def worst_parser() -> Parser:
    about = (
        "The worst images at once, drawn, beside a client with small ones. The service runs on two cores in a control "
        "group of limited memory, which needs root on Linux. Variables such as MAX_PIXELS set its settings."
    )
    parser = Parser("benchmark worst", "[MODEL_DIR] [OPTION ...]", about)
    _add_model(parser)
    parser.add_argument(
        "--memory", type=positive, default=2000, metavar="MB", help="limit of the service's memory (default: 2000)"
    )
    parser.add_argument("--images", type=positive, default=64, metavar="N", help="images at once (default: 64)")
    parser.add_argument(
        "--side", type=positive, default=SIDE, metavar="PIXELS", help=f"side of these images (default: {SIDE})"
    )
    parser.add_argument("--rounds", type=positive, default=1, metavar="N", help="how often (default: 1)")
    _add_out(parser)
    return parser


def fleet_parser() -> Parser:
    about = (
        "Three replicas behind HAProxy against the same replicas hit directly, and requests lost in drains, kills and "
        "rollouts. Needs haproxy and dnsmasq."
    )
    parser = Parser("benchmark fleet", "[MODEL_DIR] [OPTION ...]", about)
    _add_model(parser)
    parser.add_argument("--clients", type=positive, default=15, metavar="N", help="clients in all (default: 15)")
    parser.add_argument("--seconds", type=above_zero, default=5.0, help="length of each turn (default: 5)")
    parser.add_argument(
        "--rounds", type=positive, default=4, metavar="N", help="turns directly and balanced (default: 4)"
    )
    _add_out(parser)
    return parser


def gpu_parser() -> Parser:
    about = (
        "What this project promises of a GPU, checked on the first GPU of this machine within ten minutes. Ends with 1 "
        "and the names of the checks that failed. docs/gpu.md says what each check proves."
    )
    parser = Parser("benchmark gpu", "[OPTION ...]", about)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NUMBERS,
        metavar="CHECK",
        help=f"of {', '.join(sorted(NUMBERS, key=lambda name: int(name[1:])))} (default: all)",
    )
    parser.add_argument(
        "--provider", choices=("cuda", "cpu"), help="cpu: a short rehearsal with small models (default: cuda)"
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="folder for the torchvision model, which is exported if it is not there (default: a temporary folder)",
    )
    parser.add_argument(
        "--pack",
        type=Path,
        metavar="DIR",
        help="instead, write a package that runs the checks on a machine without a network; needs --architecture",
    )
    parser.add_argument(
        "--architecture", type=positive, metavar="N", help="of that machine's GPU, such as 90 for sm_90 (an H100)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for benchmark.md and benchmark.json")
    return parser


def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL_DIR",
        help="folder of a published version (default: model_store/shapes/1)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to use (default: example.jpg of the model)")
    parser.add_argument("--picture", type=Path, dest="image", help=argparse.SUPPRESS)  # its former name


def _add_out(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for benchmark.md and benchmark.png")
