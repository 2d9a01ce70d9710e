"""Which operators ONNX Runtime's CUDA provider computes: its own list of kernels, kept as `cuda_kernels.json`.

The provider gives its list only where it finds a GPU; the file lets graphs be checked anywhere. To write it again for
another release, on a machine with a GPU:

    python -m faster_rcnn.graph.cuda_kernels
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnxruntime

FILE = Path(__file__).with_name("cuda_kernels.json")
PROVIDER = "CUDAExecutionProvider"


class Kernel(NamedTuple):
    """The versions of its operator that a kernel is for, and the element types that it takes.

    types: by the name of a parameter, or of a type of the operator's definition;  without an entry, any.
    """

    first: int
    last: int
    types: dict[str, list[str]]

    def serves(self, version: int) -> bool:
        """Whether it is for the operator's definition of `version`.

        A kernel without a last version is for its first alone: what a later definition changes, it has not seen.
        """
        return self.first == version or (self.first < version <= self.last < UNBOUNDED)


UNBOUNDED = 2**31 - 1


def known_kernels() -> dict[str, list[Kernel]]:
    """Kernels by the operator's name, of ONNX's own operators."""
    listed = json.loads(FILE.read_text())["kernels"]
    return {operator: [Kernel(*kernel) for kernel in kernels] for operator, kernels in listed.items()}


def registered_kernels() -> dict[str, list[Kernel]]:
    """The same from the provider itself. Raises RuntimeError where there is no GPU or no CUDA provider."""
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
    """As few, sorted: kernels for the same versions that differ in the types of one parameter are one."""
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
