"""Writes the graphs of a version: `model.onnx`, and others that suit one provider better (contract 4.8).

Every graph is exported, verified against PyTorch and described in the card.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faster_rcnn.detector.graph_form import Form
from faster_rcnn.graph.comparison import Disagreement
from faster_rcnn.graph.export import Provider, export_onnx
from faster_rcnn.graph.exportable import Exportable
from faster_rcnn.graph.precision import Precision
from faster_rcnn.graph.shared_weights import share_weights
from faster_rcnn.graph.verification import Verifier
from service.engine.providers import CPU, CUDA, pick_provider
from service.engine.shared_weights import PORTABLE


@dataclass(frozen=True)
class GraphOptions:
    """Which graphs are exported, and how.

    precision: of the features, see `precision.py`;  provider: which of ONNX Runtime's providers must compute all of
    `model.onnx`, see `export_onnx`; for "cpu" there is no other graph;  cuda_fp16: whether there is a graph for CUDA in
    float16 beside the one in float32.  Raises ValueError if these exclude each other.
    """

    precision: Precision = "fp32"
    provider: Provider = "any"
    cuda_fp16: bool = False

    def __post_init__(self) -> None:
        if self.cuda_fp16 and self.provider == "cpu":
            raise ValueError("--cuda-fp16 adds a graph for CUDA, but --provider cpu leaves such graphs out; drop one")
        if self.cuda_fp16 and self.precision == "fp16":
            raise ValueError("--precision fp16 exports every graph in float16; leave out --cuda-fp16")


@dataclass(frozen=True)
class OtherGraph:
    """A graph beside `model.onnx`.

    name: in the card, by which the service chooses it;  file: in the folder of the version;  form: of the graph, see
    `detector/graph_form.py`.
    """

    name: str
    file: str
    precision: Precision
    form: Form


def others_for(options: GraphOptions) -> list[OtherGraph]:
    """The other graphs of a version."""
    if options.provider == "cpu":
        return []
    others = [OtherGraph("cuda", "model.cuda.onnx", options.precision, "cuda")]
    if options.cuda_fp16:
        others.append(OtherGraph("cuda-fp16", "model.cuda.fp16.onnx", "fp16", "cuda"))
    return others


def write_graphs(folder: Path, detector: Exportable, verifier: Verifier, options: GraphOptions) -> dict[str, Any]:
    """Writes all graphs into a version's folder, verifies them, and returns the card's entries on them.

    Raises Disagreement or Misplaced, with the name of the file, if a graph fails its verification.
    """
    portable, others = folder / PORTABLE, others_for(options)
    export_onnx(detector, portable, options.precision, options.provider)
    runs_on_cuda = options.provider == "any" and not others
    card = _described(portable) | {"precision": options.precision, "provider": options.provider}
    card |= _verified(portable, verifier, options.precision, options.provider, runs_on_cuda)
    if others:
        card["graphs"] = {other.name: write_other(folder, detector, verifier, other) for other in others}
    return card


def write_other(folder: Path, detector: Exportable, verifier: Verifier, other: OtherGraph) -> dict[str, Any]:
    """Writes one graph beside the `model.onnx` in `folder`, verifies it, and returns its entry in the card."""
    path = folder / other.file
    export_onnx(detector, path, other.precision, form=other.form)
    verified = _verified(path, verifier, other.precision, "any", runs_on_cuda=True)
    share_weights(path, folder / PORTABLE)
    return {"file": other.file, "precision": other.precision} | _described(path) | verified


def _described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _verified(
    path: Path, verifier: Verifier, precision: Precision, provider: Provider, runs_on_cuda: bool
) -> dict[str, Any]:
    """The results of the verification on the CPU, and on CUDA if it is there and the service runs the graph on it."""
    results = {"verification": CPU}
    if runs_on_cuda and pick_provider() == CUDA:
        results["verification_on_cuda"] = CUDA
    found = {}
    for name, run_on in results.items():
        try:
            verification = verifier.verify(path, precision, provider, run_on)
        except Disagreement as error:
            raise Disagreement(f"{path.name} on {run_on}: {error}") from error
        if remark := verification.remark():
            print(f"{path.name}: {remark}")
        found[name] = verification.to_dict()
    return found
