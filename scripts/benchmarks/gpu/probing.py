"""C1: the check that the service makes at start: real kernels on the device, compared with NumPy."""

from dataclasses import asdict

from benchmarks.gpu.outcome import Finding
from benchmarks.gpu.setup import Clock, Setup
from service.engine import probe
from service.engine.providers import CUDA, pick_provider

WITHIN = 5.0  # seconds


def probing(setup: Setup, clock: Clock) -> Finding:
    """The device passes the check, and the service would choose it. On a GPU, the report names all that it asks for."""
    del clock
    report = probe.check(setup.provider)
    found = Finding(figures={name: value for name, value in asdict(report).items() if value and name != "fault"})
    if report.fault:
        found.faults.append(f"{report}: {report.fault.reason}; {report.fault.remedy}")
    if setup.provider == CUDA:
        found.expect(pick_provider() == CUDA, "the service would run on the CPU")
        unknown = [name for name, value in report.facts().items() if not value and name != "fault"]
        found.expect(not unknown, f"unknown: {', '.join(unknown)}")
        found.expect(report.seconds < WITHIN, f"it took {report.seconds:.1f} s; {WITHIN:.0f} s are allowed")
    return found
