"""The report: a table of the checks, one of the measured rows, and the same as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gpu.outcome import Outcome, Row, Status
from benchmarks.tables import markdown

NOTHING = "–"
MB = 1e6
SHARES = ("Conv", "NMS", "TopK", "RoIAlign", "copies")
HEAD = (
    *("card", "driver", "model", "precision", "options", "N", "canvas", "ms a run", "ms an image", "images/s"),
    *(f"% {kind}" for kind in SHARES),
    *("MB", "unmatched", "bit-equal"),
)


def report(outcomes: Sequence[Outcome], card: str, driver: str, note: str) -> str:
    """Markdown that can be pasted into docs/results.md. card, driver: of the device;  note: a line on the whole run."""
    rows = [row for outcome in outcomes for row in outcome.finding.rows]
    checks = [[one.number, one.title, one.expected, f"{one.seconds:.0f}", str(one.status)] for one in outcomes]
    parts = [note + "\n", markdown(("", "check", "expected", "s", ""), checks)]
    if rows:
        parts.append(markdown(HEAD, [_cells(row, card, driver) for row in rows]))
    parts.append("".join(line for one in outcomes for line in _lines(one)))
    return "\n".join(parts)


def as_json(outcomes: Sequence[Outcome], card: str, driver: str, note: str) -> str:
    """All that was found, for programs."""
    document = {"card": card, "driver": driver, "note": note, "checks": [asdict(one) for one in outcomes]}
    return json.dumps(document, indent=1, default=str) + "\n"


def failed(outcomes: Sequence[Outcome]) -> list[str]:
    """The numbers of the checks that failed or were not run."""
    return [one.number for one in outcomes if one.status is not Status.PASSED]


def _lines(outcome: Outcome) -> list[str]:
    """A Markdown list of what a check found: its faults first, then its figures."""
    faults = [f"  - **{fault}**\n" for fault in outcome.finding.faults]
    figures = [f"  - {name}: {_value(value)}\n" for name, value in outcome.finding.figures.items()]
    return [f"- {outcome.number} {outcome.title}: {outcome.status}\n", *faults, *figures]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return NOTHING if value is None else str(value)


def _cells(row: Row, card: str, driver: str) -> list[str]:
    seconds = row.seconds
    return [
        *(card, driver or NOTHING, row.model, row.precision, row.options, str(row.n)),
        f"{row.canvas[0]}×{row.canvas[1]}",
        NOTHING if seconds is None else f"{1e3 * seconds:.2f}",
        NOTHING if seconds is None else f"{1e3 * seconds / row.n:.2f}",
        NOTHING if row.rate is None else f"{row.rate:.1f}",
        *(f"{row.shares.get(kind, 0.0):.0%}" if row.shares else NOTHING for kind in SHARES),
        NOTHING if row.memory is None else f"{row.memory / MB:.0f}",
        NOTHING if row.unmatched is None else str(row.unmatched),
        NOTHING if row.equal is None else f"{row.equal:.0%}",
    ]
