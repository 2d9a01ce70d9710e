"""The checks C1 to C15, with the values that are expected and their shares of the time.

The most important come first, but those that use the same models follow one another.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import Clock, Setup


@dataclass(frozen=True)
class Check:
    """One check.

    expected: on a GPU;  module, function: of the code, which is imported where it runs;  seconds: its share of ten
    minutes;  aside: whether it runs in a process beside this one, which opens each model once, or in this one, because
    it starts processes of its own
    """

    number: str
    title: str
    expected: str
    module: str
    function: str
    seconds: float
    aside: bool = True

    def run(self, setup: Setup, seconds: float) -> Finding:
        """Runs the check here, for about `seconds`."""
        from importlib import import_module

        function: Callable[[Setup, Clock], Finding]
        function = getattr(import_module(f"benchmarks.gpu.{self.module}"), self.function)
        return function(setup, Clock(seconds))


CHECKS = (
    Check("C1", "start-up probe", "CUDA, in under 5 s, with GPU, driver, cuDNN", "probing", "probing", 15),
    Check("C2", "placement", "no heavy node on the CPU, no features copied", "placement", "placement", 25),
    Check("C6", "float32 convolution", "error below 1e-5 without TF32", "arithmetic", "exactness", 10),
    Check("C7", "float16 convolution", "at most 1.1 times its fastest time", "arithmetic", "half_precision", 30),
    Check("C8", "changes of shape", "at most 1.2 times one shape", "shape_changes", "shape_changes", 50),
    Check("C5", "batch against alone", "unmatched: 0 of ours, 0.2 %", "agreement", "batch_against_alone", 50),
    Check("C4", "against PyTorch", "unmatched: 0 of ours, 0.5 %", "agreement", "against_pytorch", 40),
    Check("C12", "flat memory", "second 300 sizes add at most 1 %", "memory", "flat_memory", 30),
    Check("C11", "two threads", "gain recorded", "transfers", "transfers", 10),
    Check("C10", "against torchvision", "1.2 × eager, fp16 2.5 ×", "rivals", "against_torchvision", 110, aside=False),
    Check("C15", "service, 64 clients", "no failure, GPU busy 85 %", "serving", "serving", 90, aside=False),
    Check("C9", "time by stage", "NMS at most 15 % of a run", "stage_times", "stage_times", 80, aside=False),
    Check("C13", "out of memory", "all answered, budget lowered", "memory", "out_of_memory", 40, aside=False),
    Check("C14", "dead context", "503, ends with 1 within 5 s", "dead_context", "dead_context", 15, aside=False),
    Check("C3", "list of kernels", "equal to the provider's", "placement", "kernels", 5),
)
NUMBERS = tuple(check.number for check in CHECKS)


def chosen(only: list[str] | None) -> list[Check]:
    """The checks with these numbers, or all."""
    return [check for check in CHECKS if only is None or check.number in only]
