"""Which part of the detector each node of its graph belongs to, found by the flow of data (Ren et al. 2015, table 5).

Node names differ between detectors; the flow does not. The nodes that the proposals need are the backbone and the RPN;
all others are the head and the detections. Of the former, the backbone is the part that the RoI pooling reads, up to
the first TopK or NonMaxSuppression. Of the latter, the head is the part up to the last layer with weights.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from service.engine.interface import DETECTIONS, PROPOSALS

BACKBONE, RPN, HEAD, REST = STAGES = ("backbone", "RPN and proposals", "RoI pooling and head", "NMS and the rest")
WEIGHTED = ("Conv", "Gemm", "MatMul")  # and the names that quantisation and fusion give them: QLinearConv, FusedConv
SELECTING = ("TopK", "NonMaxSuppression")


@dataclass(frozen=True)
class Cuts:
    """The stages of a graph, and the tensors at which it is cut between them.

    stage_of: the stage of each node, by its place in the graph;  features: the feature maps that the RoI pooling
    reads;  head: the tensors that the detections read from the head.
    """

    stage_of: list[str]
    features: list[str]
    head: list[str]


def cut_in_stages(graph: GraphProto) -> Cuts:
    """The stages of a graph (docs/contracts.md, contract 1).

    Raises ValueError if it has no proposals, no backbone or no head.
    """
    flow = _Flow(graph)
    proposing = flow.upstream(PROPOSALS)
    detecting = flow.upstream(DETECTIONS) - proposing
    weighted = {place for place, node in enumerate(flow.nodes) if flow.has_weights(node)}
    weighted |= {place for place in flow.readers_of(weighted) if flow.adds_a_constant(place)}  # biases
    before = proposing - flow.downstream(place for place, node in enumerate(flow.nodes) if node.op_type in SELECTING)
    features = flow.crossing(before & flow.downstream(weighted), detecting)
    if not features or not weighted & detecting:
        raise ValueError("the graph has no feature maps that its head reads, or no head; is it a Faster R-CNN?")
    backbone = flow.upstream(features)
    backbone |= flow.upstream_of_nodes(_of_the_pyramid(flow, weighted & before - backbone))
    head = flow.upstream_of_nodes(weighted & detecting) & detecting
    stages = dict.fromkeys(backbone, BACKBONE)
    stages |= dict.fromkeys(proposing - backbone, RPN)
    stages |= dict.fromkeys(head, HEAD)
    return Cuts(
        [stages.get(place, REST) for place in range(len(flow.nodes))], features, flow.crossing(head, detecting - head)
    )


def _of_the_pyramid(flow: "_Flow", layers: set[int]) -> set[int]:
    """Which of `layers`, from which no RoI pooling reads, belong to the pyramid: those of maps that only the RPN reads.

    All maps share the RPN's weights (Lin et al. 2017, section 4.1), while each layer of the pyramid has its own. With
    a single map nothing is shared, and all of the layers belong to the RPN.
    """
    uses = Counter(flow.weight(flow.nodes[place]) for place in layers)
    alone = {place for place in layers if uses[flow.weight(flow.nodes[place])] == 1}
    return alone if alone != layers else set()


def spread(graph: GraphProto, known: Callable[[NodeProto], str | None]) -> list[str]:
    """Assigns a stage to every node of an optimised graph, although `known` has only some of them by name.

    A node that the optimiser inserted, for example to change the memory layout, belongs to the latest stage whose
    results it reads. If it reads none, it belongs to the earliest stage that reads it.
    """
    flow = _Flow(graph)
    stages = [known(node) for node in flow.nodes]
    for place in range(len(flow.nodes)):  # in the order in which they run
        reads = [STAGES.index(stage) for source in flow.sources[place] if (stage := stages[source])]
        if stages[place] is None and reads:
            stages[place] = STAGES[max(reads)]
    for place in reversed(range(len(flow.nodes))):
        read_by = [STAGES.index(stage) for reader in flow.readers[place] if (stage := stages[reader])]
        if stages[place] is None and read_by:
            stages[place] = STAGES[min(read_by)]
    return [stage or REST for stage in stages]


class _Flow:
    """Which node reads which in a graph. Nodes are identified by their place."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes: Sequence[NodeProto] = graph.node
        self.producer = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self.constants = {tensor.name for tensor in graph.initializer}
        self.sources = [
            sorted({self.producer[name] for name in _read_by(node) if name in self.producer}) for node in self.nodes
        ]
        self.readers: list[list[int]] = [[] for _ in self.nodes]
        for place, sources in enumerate(self.sources):
            for source in sources:
                self.readers[source].append(place)

    def upstream(self, tensors: Iterable[str]) -> set[int]:
        """The nodes that the tensors need."""
        missing = [name for name in tensors if name not in self.producer]
        if missing:
            raise ValueError(f"the graph does not make {', '.join(missing)}")
        return self.upstream_of_nodes(self.producer[name] for name in tensors)

    def upstream_of_nodes(self, places: Iterable[int]) -> set[int]:
        """The nodes, and all that they need."""
        return _reached(places, self.sources)

    def downstream(self, places: Iterable[int]) -> set[int]:
        """The nodes, and all that need them."""
        return _reached(places, self.readers)

    def crossing(self, source: set[int], target: set[int]) -> list[str]:
        """The tensors that nodes of `source` make and nodes of `target` read."""
        read = {name for place in target for name in _read_by(self.nodes[place])}
        return sorted(read & {name for place in source for name in self.nodes[place].output})

    def weight(self, node: NodeProto) -> str:
        """The name of the constant that a layer multiplies with, looking through casts and transpositions; or empty."""
        for name in node.input:
            while name in self.producer and len(self.nodes[self.producer[name]].input) == 1:
                name = self.nodes[self.producer[name]].input[0]
            if name in self.constants:
                return name
        return ""

    def readers_of(self, places: Iterable[int]) -> set[int]:
        return {reader for place in places for reader in self.readers[place]}

    def adds_a_constant(self, place: int) -> bool:
        return self.nodes[place].op_type == "Add" and any(name in self.constants for name in self.nodes[place].input)

    def has_weights(self, node: NodeProto) -> bool:
        return any(kind in node.op_type for kind in WEIGHTED) and bool(self.weight(node))


def _reached(places: Iterable[int], ways: Sequence[Sequence[int]]) -> set[int]:
    found: set[int] = set()
    waiting = list(places)
    while waiting:
        if (place := waiting.pop()) not in found:
            found.add(place)
            waiting.extend(ways[place])
    return found


def _read_by(node: NodeProto) -> set[str]:
    """The names of the tensors whose values a node reads. A node that only asks for a shape reads no value."""
    return set() if node.op_type in ("Shape", "Size") else set(node.input) - {""}
