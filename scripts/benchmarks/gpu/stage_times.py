"""C9: the time of a run by batch size, precision and options of the provider, and the kinds of work in it.

A profile of ONNX Runtime gives the time at which a node's kernels were launched, not when they were done. So a second
process, in which every launch waits for its kernel, measures the shares; the times come from a process without that.

N  images in a batch.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.gpu.device import Device
from benchmarks.gpu.engines import batch_pixels, median_seconds
from benchmarks.gpu.inputs import largest, on_one_canvas
from benchmarks.gpu.outcome import Finding, Row
from benchmarks.gpu.setup import Clock, Setup
from benchmarks.workers import Failed, Worker
from service.engine.model import Precision
from service.engine.providers import CPU, CUDA, session_options

MOST_NMS = 0.15
BLOCKING = "CUDA_LAUNCH_BLOCKING"
PATIENCE = 60.0  # seconds for one arrangement
PRECISIONS: tuple[Precision, ...] = ("strict", "tf32", "fp16")
OPTIONS: tuple[Mapping[str, str], ...] = (
    {},
    {"prefer_nhwc": "1"},
    {"fuse_conv_bias": "1"},
    {"prefer_nhwc": "1", "fuse_conv_bias": "1"},
)
# Kinds of work by operator; all others count as "other".
KINDS = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv"), "Conv"),
    **dict.fromkeys(("NonMaxSuppression", "Loop"), "NMS"),  # the loop is suppression by matrix products
    **dict.fromkeys(("TopK",), "TopK"),
    **dict.fromkeys(("RoiAlign",), "RoIAlign"),
    **dict.fromkeys(("MemcpyToHost", "MemcpyFromHost"), "copies"),
}


@dataclass(frozen=True)
class Arrangement:
    """What one row measures."""

    folder: Path
    precision: Precision
    options: Mapping[str, str]
    n: int
    canvas: tuple[int, int]


def stage_times(setup: Setup, clock: Clock) -> Finding:
    """Rows in the order of their importance, as many as there is time for."""
    found = Finding()
    with _worker(setup, blocking=False) as timing, _worker(setup, blocking=True) as profile:
        left = list(_arrangements(setup))
        while left and not clock.over():
            one = left.pop(0)
            try:
                row = timing.ask(one, seconds=PATIENCE)
                row = replace(row, shares=profile.ask(one, seconds=PATIENCE))
            except Failed as failure:
                found.faults.append(f"{_what(one)}: {failure}")
                break  # the process has ended
            found.rows.append(row)
            nms = row.shares.get("NMS", 0.0)
            found.expect(
                setup.rehearsal or nms <= MOST_NMS, f"{_what(one)}: NMS takes {nms:.0%}, {MOST_NMS:.0%} is allowed"
            )
    if left and clock.over():
        found.faults.append(f"there was no time for {len(left)} rows, the first of them {_what(left[0])}")
    return found


def _arrangements(setup: Setup) -> Iterator[Arrangement]:
    """The largest batch of the large model first, then smaller ones, then other options, then the small model."""
    plain: list[tuple[Precision, Mapping[str, str]]] = [(precision, {}) for precision in reversed(PRECISIONS)]
    others: list[tuple[Precision, Mapping[str, str]]] = [
        (precision, options) for options in OPTIONS[1:] for precision in ("fp16", "tf32")
    ]
    if setup.rehearsal:
        plain, others = plain[-1:], []
    for folder in dict.fromkeys((setup.torchvision, setup.small)):
        card = setup.load(folder).card
        canvas = largest(card.geometry)
        full = max(1, batch_pixels(setup, card.canvases) // (canvas[0] * canvas[1]))
        batches = dict.fromkeys((full, min(8, full), 1))
        for n in batches:
            for precision, options in plain:
                yield Arrangement(folder, precision, options, n, canvas)
        for precision, options in others:
            yield Arrangement(folder, precision, options, full, canvas)


@contextmanager
def _worker(setup: Setup, blocking: bool) -> Iterator[Worker]:
    """A process that measures arrangements: their times, or with `blocking` the shares of the kinds of work."""
    before = os.environ.get(BLOCKING)
    if blocking:
        os.environ[BLOCKING] = "1"
    try:
        worker = Worker(partial(_profiled if blocking else _timed, setup))
    finally:
        os.environ.pop(BLOCKING, None)
        if before is not None:
            os.environ[BLOCKING] = before
    try:
        yield worker
    finally:
        worker.close()


def _timed(setup: Setup) -> Any:
    device = Device(setup.provider)

    def measure(one: Arrangement) -> Row:
        before = device.memory([os.getpid()])
        session, feed = _session(setup, one), _feed(one)
        seconds = median_seconds(lambda: session.run(None, feed), setup.times(15, 3))
        card = setup.load(one.folder).card
        used = max(0, device.memory([os.getpid()]) - before)
        options = ", ".join(f"{name}={value}" for name, value in one.options.items()) or "fixed shape"
        return Row(f"{card.name}/{card.version}", one.precision, options, one.n, one.canvas, seconds, memory=used)

    return measure


def _profiled(setup: Setup) -> Any:
    def measure(one: Arrangement) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as place:
            session, feed = _session(setup, one, Path(place) / "profile"), _feed(one)
            for _ in range(3):
                session.run(None, feed)
            return shares(json.loads(Path(session.end_profiling()).read_text()))

    return measure


def _session(setup: Setup, one: Arrangement, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """A session for exactly this shape, with the options of the provider that the arrangement names."""
    model = setup.load(one.folder)
    options = session_options(1)
    for name, size in zip(("N", "H", "W"), (one.n, *one.canvas), strict=True):
        options.add_free_dimension_override_by_name(name, size)
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    half = model.precision_for(setup.provider, one.precision) == "fp16"
    if setup.provider == CUDA:
        onnxruntime.preload_dlls()
        of_cuda = {
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": str(int(half or one.precision != "strict")),
            **one.options,
        }
        providers: list[Any] = [(CUDA, of_cuda), CPU]
    else:
        providers = [CPU]
    graph = model.graph_for(setup.provider, one.precision)
    session = onnxruntime.InferenceSession(graph, options, providers=providers)
    if session.get_providers()[0] != setup.provider:
        raise ValueError(f"ONNX Runtime does not start {setup.provider} here")
    return session


def _feed(one: Arrangement) -> dict[str, np.ndarray]:
    canvases = on_one_canvas(one.canvas, one.n)
    return {
        "images": np.stack([canvas.pixels for canvas in canvases]),
        "sizes": np.array([one.canvas] * one.n, np.int64),
    }


def shares(events: list[dict[str, Any]]) -> dict[str, float]:
    """The share of each kind of work in the time of all nodes, from a profile. The first run, a warm-up, is left out.

    A loop's own event covers the nodes in its body, so these are left out too.
    """
    runs = [event for event in events if event["name"] == "model_run"]
    begin = runs[min(1, len(runs) - 1)]["ts"]
    nodes = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begin
    ]
    loops = [(event["ts"], event["ts"] + event["dur"]) for event in nodes if event["args"]["op_name"] == "Loop"]
    taken: dict[str, float] = {}
    for event in nodes:
        operator = event["args"]["op_name"]
        if operator != "Loop" and any(start <= event["ts"] < end for start, end in loops):
            continue
        kind = KINDS.get(operator, "other")
        taken[kind] = taken.get(kind, 0.0) + event["dur"]
    total = sum(taken.values()) or 1.0
    return {kind: time / total for kind, time in taken.items()}


def _what(one: Arrangement) -> str:
    options = "".join(f", {name}={value}" for name, value in one.options.items())
    return f"{one.folder.parent.name} {one.precision}{options}, N = {one.n}"
