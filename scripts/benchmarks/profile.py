"""Milliseconds that each stage of a graph takes (Ren et al. 2015, table 5).

On the CPU, ONNX Runtime's own profiler gives the time of every node. On a GPU its clock stops when a kernel is
launched, not when it is done. There the graph is cut after each stage, and the time of a stage is the difference
between two pieces.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.sessions import session_on
from benchmarks.stages import BACKBONE, HEAD, REST, RPN, STAGES, cut_in_stages, spread
from service.engine import onnx_subgraph
from service.engine.interface import DETECTIONS, PROPOSALS
from service.engine.providers import CUDA, session_options

BETWEEN = "between the nodes"  # time of a run that belongs to none of its nodes
MARK = "stage."
KERNEL = "_kernel_time"

Stages = dict[str, float]


def time_per_stage(
    graph: Path, pixels: np.ndarray, canvas: tuple[int, int], batches: Sequence[int], provider: str, threads: int,
    seconds: float,
) -> dict[int, Stages]:  # fmt: skip
    """Milliseconds per image of each stage, by N.

    pixels: uint8 [h, w, 3];  canvas: H, W;  seconds: each N is run for at least this long.
    Raises ValueError if the stages of the graph cannot be distinguished.
    """
    model = onnx.load(graph)
    measure = _by_cuts if provider == CUDA else _by_profiler
    return {n: measure(model, _feed(pixels, canvas, n), provider, threads, seconds) for n in batches}


def _feed(pixels: np.ndarray, canvas: tuple[int, int], n: int) -> dict[str, np.ndarray]:
    images = np.zeros((n, *canvas, 3), np.uint8)
    images[:, : pixels.shape[0], : pixels.shape[1]] = pixels
    return {"images": images, "sizes": np.array([pixels.shape[:2]] * n, np.int64)}


def _by_profiler(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], provider: str, threads: int, seconds: float
) -> Stages:
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        session = session_on(provider, _marked(model), options)
        _run_for(seconds, lambda: session.run(None, feed), warm=1)
        events = json.loads(Path(session.end_profiling()).read_text())
        optimised = onnx.load(f"{folder}/optimised.onnx").graph
    stage_of = dict(zip((node.name for node in optimised.node), spread(optimised, _marked_stage), strict=True))
    return _sum_up(events, stage_of, len(feed["images"]))


def _marked(model: onnx.ModelProto) -> bytes:
    """The model with the stage as a prefix of every name.

    The optimiser names a new node after the nodes or tensors that it replaces, so that the prefix survives.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    kept = {value.name for value in [*marked.graph.input, *marked.graph.output, *marked.graph.initializer]} | {""}
    stages = cut_in_stages(model.graph).stage_of
    renamed: dict[str, str] = {}
    del marked.graph.value_info[:]
    for place, (node, stage) in enumerate(zip(marked.graph.node, stages, strict=True)):
        node.name = f"{MARK}{STAGES.index(stage)}.{place}"
        renamed |= {name: f"{MARK}{STAGES.index(stage)}.{name}" for name in node.output if name not in kept}
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    return marked.SerializeToString()


def _marked_stage(node: onnx.NodeProto) -> str | None:
    for name in (node.name, *node.output):
        if name.startswith(MARK):
            return STAGES[int(name[len(MARK)])]
    return None


def _sum_up(events: Sequence[dict[str, Any]], stage_of: dict[str, str], n: int) -> Stages:
    """Milliseconds per image of each stage, over all runs but the first, which allocates memory."""
    runs = [event for event in events if event["name"] == "model_run"][1:]
    begin = runs[0]["ts"]
    taken = dict.fromkeys((*STAGES, BETWEEN), 0.0)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL) and event["ts"] >= begin:
            taken[stage_of.get(event["name"].removesuffix(KERNEL), BETWEEN)] += event["dur"]
    taken[BETWEEN] += sum(run["dur"] for run in runs) - sum(taken.values())
    return {stage: microseconds / 1e3 / len(runs) / n for stage, microseconds in taken.items()}


def _by_cuts(
    model: onnx.ModelProto, feed: dict[str, np.ndarray], provider: str, threads: int, seconds: float
) -> Stages:
    cuts = cut_in_stages(model.graph)
    ends = {
        BACKBONE: cuts.features,
        RPN: list(PROPOSALS),
        HEAD: [*PROPOSALS, *cuts.head],
        REST: [*PROPOSALS, *DETECTIONS],
    }
    pieces = {
        stage: session_on(provider, _up_to(model, outputs), session_options(threads)) for stage, outputs in ends.items()
    }
    rounds: list[Stages] = [
        {stage: _piece_seconds(session, feed, seconds / 12) for stage, session in pieces.items()} for _ in range(3)
    ]
    upto = [statistics.median(one[stage] for one in rounds) for stage in STAGES]
    n = len(feed["images"])
    return {stage: 1e3 * (upto[at] - (upto[at - 1] if at else 0.0)) / n for at, stage in enumerate(STAGES)}


def _up_to(model: onnx.ModelProto, outputs: Sequence[str]) -> bytes:
    """The part of the model that computes these tensors."""
    known = {output.name: output for output in model.graph.output}
    piece = onnx.ModelProto()
    piece.CopyFrom(model)
    del piece.graph.output[:]
    piece.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in outputs)
    return onnx_subgraph.extract(piece.SerializeToString(), outputs)


def _piece_seconds(session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray], seconds: float) -> float:
    """The median seconds of a run whose outputs stay on the device."""
    binding = session.io_binding()
    device = "cuda" if CUDA in session.get_providers() else "cpu"
    read = {tensor.name for tensor in session.get_inputs()}
    for name in read:
        binding.bind_cpu_input(name, feed[name])
    for tensor in session.get_outputs():
        binding.bind_output(tensor.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return statistics.median(_run_for(seconds, run, warm=1))


def _run_for(seconds: float, call: Any, warm: int) -> list[float]:
    """The seconds of each of at least two calls, after `warm` calls that do not count."""
    for _ in range(warm):
        call()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < seconds:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken
