"""The ONNX Runtime sessions of an engine, and the choice among them for each run.

A session computes all its nodes, even if only some outputs are requested. So one session holds the whole graph, and
another only the part that computes proposals. A session's number of threads is fixed when it is opened, so there is one
such pair for each number of threads that a run may use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import onnxruntime

from service.engine.interface import PROPOSALS, check_interface
from service.engine.providers import open_session, session_options


class Graphs(NamedTuple):
    """The whole graph, and the part of it that computes proposals."""

    full: bytes
    proposals: bytes


class Chosen(NamedTuple):
    """The session for a run, the outputs to request from it, and the rows N of its inputs."""

    session: onnxruntime.InferenceSession
    outputs: Sequence[str]
    rows: int


class Sessions(Protocol):
    """The sessions of one version on one device."""

    def choose(self, canvas: tuple[int, int], images: int, proposals_only: bool, threads: int) -> Chosen: ...


class DynamicSessions:
    """Sessions that take any number of images on any canvas. Raises ValueError if the graph cannot be served."""

    def __init__(self, graphs: Graphs, thread_counts: Sequence[int], open_graph: Opens) -> None:
        self._thread_counts = thread_counts
        self._full, self._proposals = (
            # more than one thread is used only while no other run is expected
            {count: open_graph(graph, session_options(count, runs_alone=count > 1)) for count in thread_counts}
            for graph in graphs
        )
        self._names = check_interface(self._full[thread_counts[0]])

    def choose(self, canvas: tuple[int, int], images: int, proposals_only: bool, threads: int) -> Chosen:
        """The session with the most threads within `threads`, else the one with the fewest."""
        count = max((count for count in self._thread_counts if count <= threads), default=self._thread_counts[0])
        if proposals_only:
            return Chosen(self._proposals[count], list(PROPOSALS), images)
        return Chosen(self._full[count], self._names, images)


Opens = Callable[[bytes, onnxruntime.SessionOptions], onnxruntime.InferenceSession]


def opener(provider: str, tf32: bool, device: int) -> Opens:
    """A function that opens a graph on a device. See `open_session`."""
    return lambda graph, options: open_session(graph, provider, options, tf32, device)
