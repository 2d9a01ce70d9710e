"""`faster-rcnn benchmark gpu`: the checks on this machine's GPU, or their rehearsal on the CPU."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.checks import chosen
from benchmarks.gpu.device import Device
from benchmarks.gpu.outcome import Outcome, Status
from benchmarks.gpu.report import as_json, failed, report
from benchmarks.gpu.running import run_checks
from benchmarks.gpu.setup import LARGE, TINY, Setup
from benchmarks.workers import Failed, call_aside
from service.engine.providers import CPU

SECONDS = 570.0  # of the ten minutes; the start, and checks that end late, take the rest
LONGEST_EXPORT = 1200.0


@dataclass(frozen=True)
class Options:
    """The options of the command.

    provider: of ONNX Runtime;  only: numbers of checks, None for all;  models: folder with the exported torchvision
    model, None to export it first;  out: folder for the report.
    """

    provider: str
    only: list[str] | None
    models: Path | None
    out: Path | None


def measure_gpu(options: Options) -> None:
    """Prints the report. With `out`, also writes benchmark.md and benchmark.json there.

    Raises Failed, with the numbers of the checks, if one fails or was not run.
    """
    device = Device(options.provider)
    with tempfile.TemporaryDirectory() as place:
        models = options.models or Path(place)
        prepare_models(models, rehearsal=options.provider == CPU)
        setup = Setup(options.provider, models)
        outcomes: list[Outcome] = []
        text = ""
        for outcome in run_checks(chosen(options.only), setup, SECONDS):
            print(f"{outcome.number} {outcome.title}: {outcome.status}, {outcome.seconds:.0f} s", file=sys.stderr)
            outcomes.append(outcome)
            text = _write(outcomes, device, setup, options.out)  # a run that is cut short leaves what it found
    print(text)
    if numbers := failed(outcomes):
        raise Failed(f"{', '.join(numbers)} failed; the lines below the table say how")


def _write(outcomes: list[Outcome], device: Device, setup: Setup, out: Path | None) -> str:
    """The report so far, also written to `out`."""
    note = _note(outcomes, device, setup.rehearsal)
    text = report(outcomes, device.card, device.driver, note)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "benchmark.md").write_text(text)
        (out / "benchmark.json").write_text(as_json(outcomes, device.card, device.driver, note))
    return text


def prepare_models(models: Path, rehearsal: bool) -> None:
    """Exports the torchvision model into `models`, in a process of its own, unless it is there."""
    name = TINY if rehearsal else LARGE
    if (models / name / "1" / "model.json").exists():
        return
    from benchmarks.gpu.subjects import prepare

    print(f"exporting {name} …", file=sys.stderr)
    call_aside(prepare, models, name, seconds=LONGEST_EXPORT)


def _note(outcomes: list[Outcome], device: Device, rehearsal: bool) -> str:
    passed = sum(one.status is Status.PASSED for one in outcomes)
    taken = sum(one.seconds for one in outcomes)
    what = "A rehearsal on the CPU, which says nothing of a GPU" if rehearsal else f"{device.card}, {device.driver}"
    return f"{what}: {passed} of {len(outcomes)} checks passed, in {taken:.0f} s."
