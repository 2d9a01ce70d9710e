"""The inputs and outputs of every graph (contract 1), and the check that a session has them."""

from __future__ import annotations

from collections.abc import Iterable

import onnxruntime

# Each name has a type and a rank.
INPUTS = {"images": ("tensor(uint8)", 4), "sizes": ("tensor(int64)", 2)}
PROPOSALS = {
    "num_proposals": ("tensor(int64)", 1),
    "proposals": ("tensor(float)", 3),
    "objectness": ("tensor(float)", 2),
}
DETECTIONS = {
    "num_detections": ("tensor(int64)", 1),
    "boxes": ("tensor(float)", 3),
    "scores": ("tensor(float)", 2),
    "labels": ("tensor(int64)", 2),
}
OPTIONAL = {"left_out": ("tensor(float)", 1)}  # older graphs lack it


def check_interface(session: onnxruntime.InferenceSession) -> list[str]:
    """The names of the outputs that the engine reads.

    Raises ValueError, naming the tensor, if the graph's inputs or outputs differ from contract 1.
    """
    outputs = session.get_outputs()
    there = {output.name for output in outputs}
    wanted = DETECTIONS | PROPOSALS | {name: kind for name, kind in OPTIONAL.items() if name in there}
    _check("input", session.get_inputs(), INPUTS)
    _check("output", outputs, wanted)
    images = next(tensor.shape for tensor in session.get_inputs() if tensor.name == "images")
    if any(isinstance(side, int) for side in images[:3]) or images[3] != 3:
        raise ValueError(f"input images has shape {images}; N, H and W must be symbolic and the last 3")
    return list(wanted)


def _check(kind: str, tensors: Iterable[onnxruntime.NodeArg], wanted: dict[str, tuple[str, int]]) -> None:
    found = {tensor.name: (tensor.type, len(tensor.shape or ())) for tensor in tensors}
    for name, (dtype, rank) in wanted.items():
        if name not in found:
            raise ValueError(f"{kind} {name} is missing; the graph has {', '.join(found)}")
        if found[name] != (dtype, rank):
            raise ValueError(f"{kind} {name} is {found[name][0]} of rank {found[name][1]}, not {dtype} of rank {rank}")
    if extra := set(found) - set(wanted) if kind == "input" else set():
        raise ValueError(f"the graph has inputs that the service does not provide: {', '.join(sorted(extra))}")
