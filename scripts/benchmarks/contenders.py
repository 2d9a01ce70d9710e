"""The contenders of a comparison. Each function builds one in the process that calls it, and returns its turn.

N  images in a batch;  H, W  canvas;  h, w  the image on it.

All start from the same uint8 pixels in host memory and end with their answer in host memory. torchvision's resizing is
left out: the image already has the size that the network gets.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sessions import session_on
from benchmarks.workers import peak_memory
from service.engine import onnx_subgraph
from service.engine.interface import DETECTIONS, PROPOSALS
from service.engine.providers import CUDA, session_options


class Found(NamedTuple):
    """The number of boxes found in the first image of a batch; None if the contender does not report it."""

    detections: int | None
    proposals: int | None


class Turn(NamedTuple):
    """seconds: of each call;  memory: the peak of the process so far, in bytes."""

    seconds: list[float]
    memory: int
    found: Found


Contender = Callable[[int, float], Turn]  # (N, least seconds of the turn) -> a turn of at least one call


def graph_contender(
    graph: Path,
    pixels: np.ndarray,
    canvas: tuple[int, int],
    provider: str,
    threads: int,
    *,
    proposals_only: bool = False,
    loop: bool = False,
    tf32: bool = False,
) -> Contender:
    """A graph (docs/contracts.md, contract 1) on N images at once, or with `loop` on one after the other.

    pixels: uint8 [h, w, 3];  canvas: H, W.
    """
    names = list(PROPOSALS if proposals_only else DETECTIONS | PROPOSALS)
    part = onnx_subgraph.extract(graph.read_bytes(), names)
    session = session_on(provider, part, session_options(threads), tf32)
    del part

    def at_once(n: int) -> Found:
        images = np.zeros((n, *canvas, 3), np.uint8)
        images[:, : pixels.shape[0], : pixels.shape[1]] = pixels
        sizes = np.array([pixels.shape[:2]] * n, np.int64)
        out = dict(zip(names, session.run(names, {"images": images, "sizes": sizes}), strict=True))
        detections = None if proposals_only else int(out["num_detections"][0])
        return Found(detections, int(out["num_proposals"][0]))

    return _turns(_one_by_one(at_once) if loop else at_once)


def torchvision_file_contender(graph: Path, pixels: np.ndarray, provider: str, threads: int) -> Contender:
    """The ONNX file that torchvision's own code was traced into: one image per run, float [3, h, w]."""
    session = session_on(provider, graph.read_bytes(), session_options(threads))
    name = session.get_inputs()[0].name

    def one(_: int) -> Found:
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255
        return Found(len(session.run(None, {name: image})[0]), None)

    return _turns(_one_by_one(one))


def torchvision_contender(
    model: Path, pixels: np.ndarray, provider: str, threads: int, how: str = "eager", tf32: bool = False
) -> Contender:
    """Torchvision's own code on a list of N images.

    model: the file that `preparation.prepare` saved;  how: eager, compile, or autocast to float16.
    """
    import torch

    from benchmarks.preparation import without_resizing

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    device = "cuda" if provider == CUDA else "cpu"
    module = without_resizing(torch.load(model, weights_only=False)).to(device)
    network: Callable[..., Any] = torch.compile(module) if how == "compile" else module
    photo = torch.from_numpy(pixels)

    def at_once(n: int) -> Found:
        images = [photo.to(device).permute(2, 0, 1).contiguous().float() / 255 for _ in range(n)]
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=how == "autocast"):
            answers = [{name: value.cpu() for name, value in answer.items()} for answer in network(images)]
        return Found(len(answers[0]["boxes"]), None)

    return _turns(at_once)


def _one_by_one(run: Callable[[int], Found]) -> Callable[[int], Found]:
    return lambda n: [run(1) for _ in range(n)][-1]


def _turns(run: Callable[[int], Found]) -> Contender:
    def turn(n: int, at_least: float) -> Turn:
        seconds: list[float] = []
        while not seconds or sum(seconds) < at_least:
            began = time.perf_counter()
            found = run(n)
            seconds.append(time.perf_counter() - began)
        return Turn(seconds, peak_memory(), found)

    return turn
