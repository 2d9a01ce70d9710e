"""Opens a version on every device, after checks that it can be served: its cost, its classes, its first runs."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from service.engine import onnx_subgraph
from service.engine.cost import Inspection
from service.engine.devices import Device
from service.engine.engine import Engine, WrongOutputError
from service.engine.few_canvases import few_canvases
from service.engine.fixed_sessions import FixedShapesError, pairs
from service.engine.interface import PROPOSALS
from service.engine.memory_left import memory_left
from service.engine.model import Model, ModelRefusedError, load_model
from service.engine.options import EngineOptions
from service.engine.out_of_memory import is_failed_plan, is_out_of_memory
from service.engine.providers import CPU
from service.engine.rehearsal import rehearse
from service.models.served_model import ServedModel

MB = 10**6
COPIES = 2  # of the file, while it is loaded: the bytes whose hash is checked, and those that ONNX Runtime reads

# ONNX Runtime's words if the process has no free file descriptor, for which it has no exception type.
NO_DESCRIPTOR = re.compile(r"too many open files|error number 2[34]\b|errno ?2[34]\b", re.IGNORECASE)

log = logging.getLogger(__name__)


class NotEnoughMemoryError(ModelRefusedError):
    """A version that needs more memory than there is now."""


class Opener:
    """Opens versions on `devices`. `left` returns the bytes of memory that may still be used, or None if unknown."""

    def __init__(
        self, devices: Sequence[Device], options: EngineOptions, left: Callable[[], int | None] = memory_left
    ) -> None:
        self._devices = devices
        self._options = options
        self._left = left

    def open(self, directory: Path, served: Callable[[str, int], ServedModel | None]) -> ServedModel:
        """The version in `directory`, ready to answer. If the same is already `served`, that one.

        Raises ModelRefusedError with the reason, and whatever ONNX Runtime raises for a reason that may pass.
        """
        self._check_file_size(directory / "model.onnx")
        model = load_model(directory)
        graphs = {device: self._graph(model, device, directory) for device in self._devices}
        current = served(*model.id)
        if current and current.card == model.card:
            return current
        # by identity: to hash the bytes of a large graph would take 0.1 s, in which no request is answered
        distinct = {id(graph): graph for graph in graphs.values()}
        seen = {key: self._inspect(model, graph, graphs) for key, graph in distinct.items()}
        made = {device: self._engine(model, device, seen[id(graph)]) for device, graph in graphs.items()}
        engines = {device: engine for device, (engine, _) in made.items()}
        faults = [f"{device.name}: {fault}" for device, (_, fault) in made.items() if fault]
        if any(each is None or each.classes is None for each in seen.values()):
            log.warning(
                "the classes of %s/%d cannot be counted in its graph; if it finds one that model.json does not list, "
                "the request gets an error",
                *model.id,
            )
        # every engine can run the canvases of the one that has the fewest, and take images that are resized already
        geometry = min(
            (engine.geometry for engine in engines.values()),
            key=lambda geometry: (len(geometry.canvases), geometry.resize_later),
        )
        return ServedModel(model.card, geometry, engines, "; ".join(faults) or None)

    def _engine(self, model: Model, device: Device, seen: Inspection | None) -> tuple[Engine, str | None]:
        """An engine, and why its sessions have no fixed shapes although they should, or None."""
        fault = None
        if self._options.fixes_shapes(device.provider):
            fixed = self._lacks_memory(model, device, seen) or self._with_fixed_shapes(model, device)
            if isinstance(fixed, Engine):
                return fixed, None
            fault = fixed
            log.warning("model %s/%d is served without FIXED_SHAPES on %s: %s", *model.id, device.name, fault)
        return self._warmed_up(model, device, replace(self._options, fixed_shapes=False)), fault

    def _lacks_memory(self, model: Model, device: Device, seen: Inspection | None) -> str | None:
        """Why sessions with fixed shapes would take too much of the machine's memory, or None."""
        left = self._left()
        if device.provider != CPU or seen is None or left is None:
            return None
        pixels, threads = device.budget.pixels, device.thread_counts
        count = pairs(few_canvases(model.card.geometry).canvases, pixels, threads)
        needed = seen.need(pixels, threads, device.runs, count).to_start
        if needed <= left:
            return None
        return f"its {2 * count} sessions need about {needed // MB} MB of memory, and {left // MB} MB are left"

    def _with_fixed_shapes(self, model: Model, device: Device) -> Engine | str:
        """An engine with fixed shapes, or why there is none. The memory that it took is free again after that."""
        try:
            return self._warmed_up(model, device, self._options)
        except FixedShapesError as error:
            return str(error)
        except Exception as error:
            # cuDNN may not say that it found no memory for a plan; if there is another cause, dynamic sessions fail too
            if not any(is_out_of_memory(each) or is_failed_plan(each) for each in _causes(error)):
                raise
            log.warning("the sessions of %s/%d do not fit into the memory", *model.id, exc_info=error)
            return "its sessions do not fit into the memory; lower BATCH_PIXELS or raise GPU_MEMORY"

    def _warmed_up(self, model: Model, device: Device, options: EngineOptions) -> Engine:
        pixels = device.budget.pixels
        engine = Engine(model, device.provider, device.thread_counts, options, device.index, pixels)
        try:
            # on a CPU, runs of different models may take place at the same time
            turn = nullcontext() if device.provider == CPU else device.turn
            engine.warm_up(pixels, device.runs, turn)
            rehearse(engine, pixels, turn)
        except WrongOutputError as error:
            raise ModelRefusedError(f"model.onnx: {error}; correct the graph or the card") from error
        except Exception as error:
            if may_pass(error) or engine.provider != CPU:  # an error of CUDA may be the GPU's
                raise
            log.exception("model %s/%d fails when it runs", *model.id)
            raise ModelRefusedError(
                "model.onnx fails when it runs on one of its canvases; the log has the reason, so correct the "
                "canvases or export the graph again"
            ) from error
        return engine

    def _check_file_size(self, file: Path, more: int = 0) -> None:
        """Raises NotEnoughMemoryError if merely reading a graph, and `more` bytes, could exhaust the memory."""
        try:
            size = file.stat().st_size
        except OSError:  # loading gives the reason
            return
        self._check_memory(f"{file.name} alone needs", COPIES * (size + more))

    def _graph(self, model: Model, device: Device, directory: Path) -> bytes:
        """The graph that the device will run. Raises ModelRefusedError."""
        precision = self._options.precision
        if other := model.other_graph(device.provider, precision):
            self._check_file_size(directory / other.file, more=len(model.graph))
        return model.graph_for(device.provider, precision)

    def _inspect(self, model: Model, graph: bytes, graphs: Mapping[Device, bytes]) -> Inspection | None:
        """What the graph shows without a run, or None if that cannot be told.

        graphs  the graph that each device will run

        Raises ModelRefusedError if the card lists another number of labels, or if the version is too costly.
        """
        try:
            onnx_subgraph.refuse_external_data(graph)
            proposals = onnx_subgraph.extract(graph, list(PROPOSALS))
            seen = Inspection(graph, proposals, model.card.geometry.canvases)
        except (ValueError, KeyError) as error:  # for a graph that is no model at all, the engine gives the reason
            log.warning("the memory that %s/%d needs cannot be estimated: %s", *model.id, error)
            return None
        listed = len(model.card.labels)
        if seen.classes not in (None, listed):
            raise ModelRefusedError(
                f"the graph distinguishes {seen.classes} classes, without the background, but model.json lists "
                f"{listed} labels; list one label for each class, in the order of training"
            )
        self._check_cost(model, seen, [device for device, its in graphs.items() if its is graph])
        return seen

    def _check_cost(self, model: Model, seen: Inspection, devices: Sequence[Device]) -> None:
        on_cpu = [device for device in devices if device.provider == CPU or model.card.provider == "cpu"]
        needs = [seen.need(device.budget.pixels, device.thread_counts, device.runs) for device in on_cpu]
        self._check_memory("it needs", sum(need.to_start for need in needs))
        left, under_load = self._left(), sum(need.under_load for need in needs)
        if left is not None and under_load > left:
            log.warning(
                "model %s/%d may need %d MB under full load, and %d MB are left; lower ENGINE_WORKERS or BATCH_PIXELS, "
                "or give the service more memory",
                *model.id,
                under_load // MB,
                left // MB,
            )

    def _check_memory(self, subject: str, needed: int) -> None:
        left = self._left()
        if left is not None and needed > left:
            raise NotEnoughMemoryError(
                f"{subject} about {needed // MB} MB of memory to be loaded, and {left // MB} MB are left; export it "
                "with smaller canvases, set ENGINE_THREADS=1, or give the service more memory"
            )


def may_pass(error: BaseException) -> bool:
    """Whether the reason for an error may be gone later: memory, file descriptors, a network file system."""
    return (
        any(
            isinstance(each, OSError | MemoryError | NotEnoughMemoryError)
            or is_out_of_memory(each)
            or NO_DESCRIPTOR.search(str(each))
            for each in _causes(error)
        )
        or _no_descriptor_is_free()
    )


def shortage(error: BaseException) -> str:
    """What was missing when an error that may pass was raised."""
    causes = list(_causes(error))
    if any(isinstance(each, MemoryError) or is_out_of_memory(each) for each in causes):
        return "out of memory"
    if _no_descriptor_is_free() or any(NO_DESCRIPTOR.search(str(each)) for each in causes):
        return "too many open files"
    numbers = [each.errno for each in causes if isinstance(each, OSError) and each.errno]
    return os.strerror(numbers[0]).lower() if numbers else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _no_descriptor_is_free() -> bool:
    try:
        with Path("/dev/null").open("rb"):
            return False
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
