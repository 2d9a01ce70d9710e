"""C2 and C3: where the provider computes each node, what it copies to the host, and which kernels it lists."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import EMBEDDED, Clock, Setup
from benchmarks.sessions import session_on
from faster_rcnn.graph.cuda_kernels import known_kernels, outdated, registered_kernels
from faster_rcnn.graph.placement import cpu_nodes
from service.engine.providers import CUDA, session_options

TO_HOST = "MemcpyToHost"
NAMED = 5  # in a message


def placement(setup: Setup, clock: Clock) -> Finding:
    """C2: the CPU gets nothing but arithmetic on shapes, and no features are copied to the host."""
    del clock
    found = Finding()
    for folder in (setup.torchvision, *EMBEDDED):
        model = setup.load(folder)
        name = f"{model.id[0]}/{model.id[1]}"
        with tempfile.TemporaryDirectory() as place:
            graph, optimised = Path(place) / "model.onnx", Path(place) / "optimised.onnx"
            graph.write_bytes(model.graph_for(setup.provider))
            nodes = cpu_nodes(graph)
            options = session_options(1)
            options.optimized_model_filepath = str(optimised)
            session_on(setup.provider, graph.read_bytes(), options)
            copies = copied_features(onnx.load(optimised)) if setup.provider == CUDA else []
        heavy = [f"{node.operator} {node.name}" for node in nodes if node.heavy]
        found.figures[name] = {"on the CPU": len(nodes), "heavy": len(heavy), "features copied": len(copies)}
        found.expect(not heavy, f"{name}: on the CPU are {', '.join(heavy[:NAMED])}")
        found.expect(not copies, f"{name}: copied to the host are {', '.join(copies[:NAMED])}")
    return found


def copied_features(optimised: onnx.ModelProto) -> list[str]:
    """Names of the tensors that the provider copies to the host, without those of rank 0 and 1, which are shapes."""
    found = []
    for graph in _graphs(optimised.graph):
        ranks = {one.name: len(one.type.tensor_type.shape.dim) for one in graph.value_info}
        copied = [node.input[0] for node in graph.node if node.op_type == TO_HOST]
        found += [name for name in copied if ranks.get(name, 2) > 1]
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def kernels(setup: Setup, clock: Clock) -> Finding:
    """C3: the list of CUDA kernels in the project is the provider's own. On the CPU: it is of the installed version."""
    del clock
    from faster_rcnn.graph import cuda_kernels

    listed = known_kernels()
    found = Finding(figures={"operators listed": len(listed)})
    if setup.rehearsal:
        import json

        import onnxruntime

        fault = outdated(json.loads(cuda_kernels.FILE.read_text())["onnxruntime"], onnxruntime.__version__)
        found.expect(not fault, fault)
        return found
    there = registered_kernels()
    differing = sorted(name for name in {*listed, *there} if listed.get(name) != there.get(name))
    found.figures["operators of the provider"] = len(there)
    found.expect(
        not differing,
        f"{len(differing)} operators differ ({', '.join(differing[:NAMED])}); write the list again: "
        f"{cuda_kernels.COMMAND}",
    )
    return found
