"""The kernels of ONNX Runtime's CUDA provider, kept as `cuda_kernels.json`.

The provider lists its kernels only on a machine with a GPU. With the file, graphs can be checked on any machine. The
list belongs to one release of ONNX Runtime. After an upgrade, write it again on a machine with a GPU:

    python -m faster_rcnn.graph.cuda_kernels

`onnxruntime.capi._pybind_state` is private to ONNX Runtime; it is used here alone.
"""

import functools
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnxruntime

log = logging.getLogger(__name__)

FILE = Path(__file__).with_name("cuda_kernels.json")
COMMAND = "python -m faster_rcnn.graph.cuda_kernels"
PROVIDER = "CUDAExecutionProvider"


class Kernel(NamedTuple):
    """A CUDA kernel of one operator.

    first, last: the versions of the operator that the kernel supports;  types: the element types that it accepts, by
    the name of a parameter or type variable in the operator's definition. A name without an entry accepts any type.
    """

    first: int
    last: int
    types: dict[str, list[str]]

    def serves(self, version: int) -> bool:
        """Whether the kernel supports the operator's definition of `version`.

        A kernel without a last version supports its first one only, because it was written before later definitions.
        """
        return self.first == version or (self.first < version <= self.last < UNBOUNDED)


UNBOUNDED = 2**31 - 1


@functools.cache
def known_kernels() -> dict[str, list[Kernel]]:
    """The kernels in the file, for ONNX's own operators, by the operator's name.

    Logs a warning, once in a process, if another version of ONNX Runtime is installed than the list was written for.
    """
    document = json.loads(FILE.read_text())
    if fault := table_fault():
        log.warning("%s", fault)
    return {name: [Kernel(*kernel) for kernel in kernels] for name, kernels in document["kernels"].items()}


def table_fault() -> str:
    """What `outdated` says about the file and the installed ONNX Runtime."""
    return outdated(json.loads(FILE.read_text())["onnxruntime"], onnxruntime.__version__)


def outdated(listed: str, installed: str) -> str:
    """A warning, with the remedy, if the list was written for another version; otherwise an empty text."""
    if listed == installed:
        return ""
    return (
        f"{FILE.name} lists the CUDA kernels of ONNX Runtime {listed}, and {installed} is installed, so the check for "
        f"nodes that CUDA lacks may be wrong; write the list again on a machine with a GPU: {COMMAND}"
    )


def registered_kernels() -> dict[str, list[Kernel]]:
    """The kernels that the provider itself lists. Raises RuntimeError without a GPU or without a CUDA provider."""
    from onnxruntime.capi import _pybind_state as runtime

    onnxruntime.preload_dlls()
    library = next(Path(onnxruntime.__file__).parent.glob("capi/*onnxruntime_providers_cuda.*"), None)
    if library is None:
        raise RuntimeError("this onnxruntime has no CUDA provider; install onnxruntime-gpu")
    onnxruntime.register_execution_provider_library(PROVIDER, str(library))
    kernels: dict[str, list[Kernel]] = defaultdict(list)
    for one in runtime.get_registered_ep_kernel_defs(PROVIDER):
        if one.domain == "":
            types = {name: [_element(kind) for kind in kinds] for name, kinds in one.type_constraints.items()}
            kernels[one.op_name].append(Kernel(one.version_range[0], one.version_range[1], types))
    return {operator: _merged(kernels[operator]) for operator in sorted(kernels)}


def _element(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")")


def _merged(kernels: Sequence[Kernel]) -> list[Kernel]:
    """As few as possible, sorted: kernels for the same versions that differ in one parameter's types become one."""
    merged: list[Kernel] = []
    for kernel in sorted(kernels, key=lambda one: (one.first, one.last)):
        for other in merged:
            differing = [name for name in kernel.types if kernel.types[name] != other.types.get(name)]
            if other[:2] == kernel[:2] and other.types.keys() == kernel.types.keys() and len(differing) <= 1:
                for name in differing:
                    other.types[name] = sorted({*other.types[name], *kernel.types[name]})
                break
        else:
            merged.append(kernel)
    return merged


def main() -> None:
    lines = [f" {json.dumps(name)}: {json.dumps(kernels)}" for name, kernels in registered_kernels().items()]
    head = f'{{"onnxruntime": {json.dumps(onnxruntime.__version__)}, "kernels": {{\n'
    FILE.write_text(head + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
