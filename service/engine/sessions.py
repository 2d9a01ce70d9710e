"""The ONNX Runtime sessions of an engine, and the choice among them for each run.

A session computes all its nodes, even if only some outputs are requested. So one session holds the whole graph, and
another only the part that computes proposals. A session's number of threads is fixed when it is opened, so there is one
such pair for each number of threads that a run may use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnxruntime

from service.engine import onnx_subgraph
from service.engine.interface import PROPOSALS, check_interface
from service.engine.providers import open_session, session_options
from service.engine.weights import SMALLEST, TYPES, Weights


class Chosen(NamedTuple):
    """The session for a run, the outputs to request from it, and the rows N of its inputs."""

    session: onnxruntime.InferenceSession
    outputs: Sequence[str]
    rows: int


class SessionFactory:
    """Opens sessions for the whole graph of a version, and for the part of it that computes proposals.

    weights  what the sessions share; it must live as long as they. None if each has its own copy of the weights

    Raises ValueError if the graph cannot be served.
    """

    def __init__(self, graph: bytes, provider: str, tf32: bool, device: int, shares_weights: bool) -> None:
        onnx_subgraph.refuse_external_data(graph)
        self._graphs = {False: graph, True: onnx_subgraph.extract(graph, list(PROPOSALS))}
        self._how = (tf32, device)
        self._provider = provider
        self._names: dict[bool, list[str]] = {}
        self.weights: Weights | None = None
        if shares_weights:
            found = {only: onnx_subgraph.without_weights(each, SMALLEST, TYPES) for only, each in self._graphs.items()}
            self._graphs = {only: rest for only, (rest, _) in found.items()}
            self._names = {only: list(weights) for only, (_, weights) in found.items()}
            self.weights = Weights(found[False][1], provider, device)

    def open(
        self, proposals_only: bool, threads: int, sizes: Mapping[str, int] | None = None
    ) -> onnxruntime.InferenceSession:
        """A session. sizes: of dimensions, by their names in the graph; others remain dynamic."""
        # more than one thread is used only while no other run is expected
        options = session_options(threads, runs_alone=threads > 1)
        for name, size in (sizes or {}).items():
            options.add_free_dimension_override_by_name(name, size)
        if self.weights:
            self.weights.give_to(options, self._names[proposals_only])
        return open_session(self._graphs[proposals_only], self._provider, options, *self._how)


class DynamicSessions:
    """Sessions that take any number of images on any canvas. Raises ValueError if the graph cannot be served."""

    def __init__(self, factory: SessionFactory, thread_counts: Sequence[int]) -> None:
        self._weights = factory.weights  # must outlive the sessions
        self._thread_counts = thread_counts
        self._full, self._proposals = (
            {count: factory.open(proposals_only, count) for count in thread_counts} for proposals_only in (False, True)
        )
        first = self._full[thread_counts[0]]
        self.outputs = {False: check_interface(first), True: list(PROPOSALS)}
        self.input_shapes: dict[str, list[str | int | None]] = {each.name: each.shape for each in first.get_inputs()}

    def choose(self, images: int, proposals_only: bool, threads: int) -> Chosen:
        """The session with the most threads within `threads`, else the one with the fewest."""
        count = max((count for count in self._thread_counts if count <= threads), default=self._thread_counts[0])
        sessions = self._proposals if proposals_only else self._full
        return Chosen(sessions[count], self.outputs[proposals_only], images)
