"""Runs the checks within a given time. What there was no time for is not run, which counts as failed.

A check gets its share of the time that is left. It ends by itself when that is over; if it does not, its process is
ended, so that one check that hangs cannot take the time of all others.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.gpu.checks import Check
from benchmarks.gpu.outcome import Finding, Outcome, Status
from benchmarks.gpu.setup import Setup
from benchmarks.workers import Failed, Worker, one_line

LEAST = 5.0  # seconds; a check with less is not begun
PATIENCE = 1.5  # times its share, after which a check is ended


def run_checks(checks: Sequence[Check], setup: Setup, seconds: float) -> Iterator[Outcome]:
    """The outcome of each check, as soon as it has ended."""
    ends = time.monotonic() + seconds
    aside = _Aside(setup)
    try:
        for place, check in enumerate(checks):
            left = ends - time.monotonic()
            share = left * check.seconds / sum(one.seconds for one in checks[place:])
            if left < LEAST:
                reason = Finding([f"not run: {max(0.0, left):.0f} of {seconds:.0f} s were left"])
                yield Outcome(check.number, check.title, check.expected, Status.NOT_RUN, 0.0, reason)
                continue
            began = time.monotonic()
            finding = _run(check, setup, share, min(left, PATIENCE * share + LEAST), aside)
            status = Status.FAILED if finding.faults else Status.PASSED
            yield Outcome(check.number, check.title, check.expected, status, time.monotonic() - began, finding)
    finally:
        aside.close()


def _run(check: Check, setup: Setup, share: float, most: float, aside: "_Aside") -> Finding:
    """Never raises: an exception is a fault of the check."""
    if not check.aside:
        aside.close()  # its models would take the memory that is measured now
        try:
            return check.run(setup, share)
        except Exception as error:
            return Finding([one_line(error)])
    return aside.run(check, share, most)


class _Aside:
    """A process that runs one check after the other, and is replaced after one that ends it."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._worker: Worker | None = None

    def run(self, check: Check, share: float, most: float) -> Finding:
        if self._worker is None:
            self._worker = Worker(partial(_runner, self._setup))
        try:
            finding: Finding = self._worker.ask(check, share, seconds=most)
        except Failed as failure:
            self.close()
            return Finding([str(failure)])
        return finding

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _runner(setup: Setup) -> partial[Finding]:
    return partial(_run_here, setup)


def _run_here(setup: Setup, check: Check, share: float) -> Finding:
    return check.run(setup, share)
