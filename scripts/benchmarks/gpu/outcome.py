"""What a check found, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How a check ended; the values are the words of the tables."""

    PASSED = "passed"
    FAILED = "FAILED"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One measured arrangement, a row of the table. None: not measured.

    precision: of the features, or how CUDA may round;  options: of the provider, or how the contender runs;  n: images
    in a batch;  canvas: H, W;  seconds: of a whole run, from pixels in host memory to boxes in host memory;
    shares: of the time of a run, by kind of work;  memory: bytes on the device;  unmatched: boxes without a partner;
    equal: share of the answers that are equal to the last bit.
    """

    model: str
    precision: str
    options: str
    n: int
    canvas: tuple[int, int]
    seconds: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    unmatched: int | None = None
    equal: float | None = None

    @property
    def rate(self) -> float | None:
        """Images per second."""
        return self.n / self.seconds if self.seconds else None


@dataclass
class Finding:
    """What a check found.

    faults: what differs from the expected values, one line each; empty if all is as expected;  figures: what was
    measured, by name;  rows: for the table.
    """

    faults: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def expect(self, right: bool, fault: str) -> None:
        """Notes `fault` unless `right`."""
        if not right:
            self.faults.append(fault)


@dataclass(frozen=True)
class Outcome:
    """How a check ended, after how many seconds."""

    number: str
    title: str
    expected: str
    status: Status
    seconds: float
    finding: Finding
