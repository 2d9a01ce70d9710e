"""Finds the nodes of an exported graph that would fall back to the CPU under CUDA.

For each of them, features would be copied to the host and back. With a GPU, a session of ONNX Runtime says where it
places each node. Without one, a node falls back if the CUDA provider has no kernel for its operator, version and types.
Arithmetic on shapes may run on the CPU: ONNX Runtime keeps such integers on the host on purpose.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx

from faster_rcnn.graph.cuda_kernels import Kernel, known_kernels, table_fault
from service.engine.providers import CUDA, open_session, pick_provider, session_options

SHAPE_TYPES = {"int32", "int64", "bool"}
FOLDED = {"Constant"}  # a Constant becomes a weight when the graph is loaded


class CpuNode(NamedTuple):
    """A node that would run on the CPU;  heavy: whether it does more than arithmetic on scalars and shapes."""

    name: str
    operator: str
    heavy: bool


class Tensor(NamedTuple):
    """The rank and type of a tensor; an unknown rank is None, an unknown type "undefined"."""

    type: str
    rank: int | None


UNKNOWN = Tensor("undefined", None)


class Misplaced(ValueError):  # noqa: N818  the word for it
    """Under CUDA, the graph would still compute features on the CPU; the message names the nodes."""


def check_placement(path: Path) -> None:
    """Raises Misplaced if under CUDA more than arithmetic on shapes would run on the CPU."""
    if heavy := [node for node in cpu_nodes(path) if node.heavy]:
        named = ", ".join(f"{node.operator} {node.name!r}" for node in heavy[:5])
        more = f" and {len(heavy) - 5} more" if len(heavy) > 5 else ""
        fault = table_fault()
        raise Misplaced(
            f"{path.name}: CUDA has no kernel for {named}{more}; use operators, types or an opset for which it has one"
            f"{f' ({fault})' if fault else ''}"
        )


def cpu_nodes(path: Path) -> list[CpuNode]:
    """The nodes of a graph, and of the bodies of its loops, that under CUDA would run on the CPU."""
    if pick_provider() == CUDA:
        return assigned(path, CUDA)
    model, kernels = _typed(path), known_kernels()
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    scopes = _scopes(model.graph, {})
    return [one for graph, tensors in scopes for one in _without_kernel(graph, opset, tensors, kernels)]


def assigned(path: Path, provider: str) -> list[CpuNode]:
    """The nodes that a session opened on `provider` gives to other providers.

    ONNX Runtime assigns nodes after its first optimisations, so some are not in the file. These are looked up in the
    optimised graph, which the session writes. A node that is in neither counts as heavy.
    """
    options = session_options(threads=1)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        session = open_session(onnx.load(path).SerializeToString(), provider, options)
        heavy = _heavy(_typed(optimised)) | _heavy(_typed(path))
    return [
        CpuNode(node.name, node.op_type, heavy.get(node.name, True))
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]


def _typed(path: Path) -> onnx.ModelProto:
    """The model with the types and ranks of its tensors, as far as they can be inferred."""
    return onnx.shape_inference.infer_shapes(_without_weights(onnx.load(path)))


def _heavy(model: onnx.ModelProto) -> dict[str, bool]:
    """Whether each node is heavy, by its name. Of nodes of one name in two loops, the heavy one counts."""
    heavy: dict[str, bool] = {}
    for graph, tensors in _scopes(model.graph, {}):
        for node in graph.node:
            heavy[node.name] = heavy.get(node.name, False) or _is_heavy(node, tensors)
    return heavy


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drops the weights, which no shape depends on. Otherwise half a gigabyte would be copied several times."""
    for weight in model.graph.initializer:
        if weight.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            weight.ClearField("raw_data")
    return model


def _without_kernel(
    graph: onnx.GraphProto, opset: int, tensors: Mapping[str, Tensor], kernels: Mapping[str, Sequence[Kernel]]
) -> Iterator[CpuNode]:
    for node in graph.node:
        if node.op_type not in FOLDED and not _has_kernel(node, opset, tensors, kernels):
            yield CpuNode(node.name, node.op_type, _is_heavy(node, tensors))


def _scopes(graph: onnx.GraphProto, outer: dict[str, Tensor]) -> Iterator[tuple[onnx.GraphProto, dict[str, Tensor]]]:
    """A graph, then the bodies of its loops, each with the tensors that it sees: its own and those around it."""
    tensors = outer | _tensors(graph)
    yield graph, tensors
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _scopes(attribute.g, tensors)


def _has_kernel(
    node: onnx.NodeProto, opset: int, tensors: Mapping[str, Tensor], kernels: Mapping[str, Sequence[Kernel]]
) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset)
    found = {}
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for place, name in enumerate(names):
            parameter = parameters[min(place, len(parameters) - 1)]  # the last may be variadic
            if name:
                found[parameter.name] = found[parameter.type_str] = tensors.get(name, UNKNOWN).type
    return any(
        kernel.serves(schema.since_version)
        and all(found[key] in types for key, types in kernel.types.items() if key in found)
        for kernel in kernels.get(node.op_type, ())
    )


def _is_heavy(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a node touches more than scalars and lists of integers. `Shape` does not read its input's values."""
    names = node.output if node.op_type == "Shape" else [*node.input, *node.output]
    known = [tensors.get(name, UNKNOWN) for name in names if name]
    return not all(one.rank == 0 or (one.rank == 1 and one.type in SHAPE_TYPES) for one in known)


def _tensors(graph: onnx.GraphProto) -> dict[str, Tensor]:
    tensors = {one.name: Tensor(_type_name(one.data_type), len(one.dims)) for one in graph.initializer}
    for one in (*graph.input, *graph.value_info, *graph.output):
        kind = one.type.tensor_type
        tensors[one.name] = Tensor(_type_name(kind.elem_type), len(kind.shape.dim) if kind.HasField("shape") else None)
    return tensors


def _type_name(element: int) -> str:
    return onnx.TensorProto.DataType.Name(element).lower()
