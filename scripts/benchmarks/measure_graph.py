"""Measures one graph on this machine, by itself or against torchvision's own code: `faster-rcnn benchmark graph`."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from PIL import Image

from benchmarks.comparison import Entry, Measured, compare
from benchmarks.contenders import graph_contender, torchvision_contender, torchvision_file_contender
from benchmarks.images import jpeg, open_rgb
from benchmarks.machine import describe, other_work
from benchmarks.one_core import one_core
from benchmarks.report import comparison_table, stage_table
from benchmarks.workers import Failed, call_aside
from service.engine.model import load_model
from service.engine.providers import CUDA
from service.images.decode import decode

if TYPE_CHECKING:
    from benchmarks.profile import Stages

OURS, LOOP, PROPOSALS_ONLY = "ours", "ours, N = 1 in a loop", "ours, proposals only"
EAGER, COMPILED, TRACED = "torchvision eager", "torchvision, torch.compile", "torchvision's own file, N = 1 in a loop"
LONGEST_COMPILATION = 120.0  # seconds; if compiling took longer, no larger N is tried
LONGEST_EXPORT = 900.0


@dataclass(frozen=True)
class Options:
    """The options of the command.

    folder: of a published model;  builder: of torchvision, with the source of its weights;  size: height and width of
    the image that the network gets, None to apply the model's own rule;  seconds: of a turn.
    """

    folder: Path | None
    builder: str | None
    weights: str | None
    checkpoint: Path | None
    precision: str
    image: Path
    size: tuple[int, int] | None
    provider: str
    batches: tuple[int, ...]
    threads: int
    seconds: float
    out: Path | None


@dataclass(frozen=True)
class Subject:
    """The graph, and the image for all contenders: pixels uint8 [h, w, 3] on a canvas H, W."""

    graph: Path
    pixels: np.ndarray
    canvas: tuple[int, int]


def measure_graph(options: Options) -> None:
    """Prints the tables. With `out` it also writes them to that folder, with a plot.

    Raises ModelRefusedError, OSError or Failed if the measurement could not be made.
    """
    warning = other_work()
    with tempfile.TemporaryDirectory() as place:
        if options.builder is None:
            assert options.folder is not None
            subject, more, head = _published(options, options.folder)
        else:
            subject, more, head = _torchvision(options, Path(place))
        entries = [*_own(options, subject), *more]
        baseline = EAGER if more else LOOP
        results = compare(entries, options.batches, options.provider, options.seconds)
        stages, remark = _stages(options, subject)
    parts = [
        head,
        warning,
        comparison_table(results, baseline, LOOP),
        _what_it_means(options),
        stage_table(stages),
        remark,
    ]
    if options.builder is None and options.folder is not None:
        parts.append(one_core(load_model(options.folder), open_rgb(options.image), options.seconds))
    text = "\n".join(part for part in parts if part)
    print(text)
    if options.out is not None:
        _write(options.out, text, results, stages)


def _published(options: Options, folder: Path) -> tuple[Subject, list[Entry], str]:
    model = load_model(folder)
    canvas = decode(jpeg(open_rgb(options.image), (640, 480)), model.card.geometry)
    subject = Subject(folder / "model.onnx", canvas.pixels, canvas.size)
    return subject, [], _head(options, subject, f"{model.card.name}/{model.card.version}")


def _torchvision(options: Options, place: Path) -> tuple[Subject, list[Entry], str]:
    """Builds, exports and traces the model, each in a process of its own, so that this process stays small."""
    from benchmarks.preparation import Source, prepare, trace

    assert options.builder is not None
    own, saved, traced = place / "model.onnx", place / "model.pt", place / "traced.onnx"
    graph = own if options.folder is None else options.folder / "model.onnx"
    source = Source(options.builder, options.weights, options.checkpoint)
    print("exporting and tracing, a minute or two …", file=sys.stderr)
    resize, stride = call_aside(
        prepare, source, saved, own if options.folder is None else None, options.precision, seconds=LONGEST_EXPORT
    )
    image = open_rgb(options.image)
    height, width = options.size or resize(image.height, image.width)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    subject = Subject(graph, pixels, (-(-height // stride) * stride, -(-width // stride) * stride))
    common = (pixels, options.provider, options.threads)
    contenders = [Entry(EAGER, partial(torchvision_contender, saved, *common))]
    if options.provider == CUDA:
        contenders += [
            Entry("torchvision eager, TF32", partial(torchvision_contender, saved, *common, tf32=True)),
            Entry("torchvision eager, autocast", partial(torchvision_contender, saved, *common, how="autocast")),
        ]
    compiled = partial(torchvision_contender, saved, *common, how="compile")
    contenders.append(Entry(COMPILED, compiled, patience=LONGEST_COMPILATION))
    try:
        call_aside(trace, saved, traced, pixels, seconds=LONGEST_EXPORT)
        contenders.append(Entry(TRACED, partial(torchvision_file_contender, traced, *common)))
    except Failed as failure:
        contenders.append(Entry(TRACED, partial(_not_made, f"torch.onnx.export: {failure}")))
    return subject, contenders, _head(options, subject, options.builder)


def _not_made(reason: str) -> NoReturn:
    raise Failed(reason)


def _own(options: Options, subject: Subject) -> list[Entry]:
    build = partial(graph_contender, subject.graph, subject.pixels, subject.canvas, options.provider, options.threads)
    entries = [
        Entry(OURS, build),
        Entry(LOOP, partial(build, loop=True)),
        Entry(PROPOSALS_ONLY, partial(build, proposals_only=True)),
    ]
    if options.provider == CUDA:
        entries.append(Entry("ours, TF32", partial(build, tf32=True)))
    return entries


def _stages(options: Options, subject: Subject) -> tuple[dict[int, "Stages"], str]:
    """Milliseconds per image by N and stage; or nothing, with the reason."""
    try:
        from benchmarks.profile import time_per_stage
    except ImportError as error:
        return {}, f"Stages: not measured, {error.name} is not installed; scripts/bootstrap dev installs it.\n"
    try:
        stages = call_aside(
            time_per_stage, subject.graph, subject.pixels, subject.canvas, options.batches, options.provider,
            options.threads, max(1.0, options.seconds), seconds=LONGEST_EXPORT,
        )  # fmt: skip
    except Failed as failure:
        return {}, f"Stages: not measured, {failure}\n"
    return stages, ""


def _head(options: Options, subject: Subject, name: str) -> str:
    height, width = subject.pixels.shape[:2]
    weights = ""
    if options.builder is not None:
        weights = f", weights {options.weights or options.checkpoint or 'random'}, {options.precision}"
    return (
        f"{name}{weights}; {describe(options.provider, options.threads)}; {options.provider}; "
        f"image {height}×{width} on canvas {subject.canvas[0]}×{subject.canvas[1]}\n"
    )


def _what_it_means(options: Options) -> str:
    lines = [
        "Figures are medians over rounds that measure every row once; ratios are computed within a round. "
        "p50 and p95: of a whole call.",
        "Memory: the peak of the contender's own process up to this N"
        + (", on the GPU." if options.provider == CUDA else ", its libraries included."),
    ]
    if options.builder is not None:
        lines.append("All start from uint8 pixels of the same size in host memory; torchvision's resizing is left out.")
    if options.builder is not None and not options.weights and not options.checkpoint:
        lines.append(
            "Random weights: the model proposes as many regions as its limits allow, which is the highest cost per "
            "image. Its detections are meaningless."
        )
    return "\n".join(lines) + "\n"


def _write(out: Path, text: str, results: Sequence[Measured], stages: dict[int, "Stages"]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmark.md").write_text(text)
    try:
        from benchmarks.plots import plot
    except ImportError as error:
        print(f"No plot: {error.name} is not installed; scripts/bootstrap dev installs it.")
        return
    plot(results, stages, out / "benchmark.png")
