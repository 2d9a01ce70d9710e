"""The figures of one turn of a contender at one load, and their medians over several turns."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.load.load_generator import ANSWERED, REFUSED, Load
from benchmarks.load.process_usage import Usage
from benchmarks.load.raw_pipeline import Done

Number = float | None  # None: unknown, or nothing to compute it from


@dataclass(frozen=True)
class Turn:
    """The figures of one turn; None where a figure is unknown.

    rate: answers per second;  p50, p95, p99: seconds until an answer;  cpu, generator_cpu: processor seconds per
    answer;  cores: number kept busy;  memory: bytes, at most, before and after;  refused: share of the requests;
    refusal_p50, refusal_p99, back: seconds;  failed: failed requests, counted by outcome.
    """

    rate: float
    p50: Number
    p95: Number
    p99: Number
    cpu: Number = None
    cores: Number = None
    memory: Number = None
    memory_before: Number = None
    memory_after: Number = None
    generator_cpu: Number = None
    refused: Number = None
    refusal_p50: Number = None
    refusal_p99: Number = None
    back: Number = None
    failed: Counter[str] = field(default_factory=Counter)


def of_load(load: Load, before: Usage, peak: int | None, after: Usage, seconds: float) -> Turn:
    """The figures of a turn against a server.

    before, after: the server's usage before and after the turn;  peak: the most memory that it used in the `seconds` in
    between; None if that was not measured.
    """
    spent = None
    if before.cpu_seconds is not None and after.cpu_seconds is not None:
        spent = after.cpu_seconds - before.cpu_seconds
    refused = sum(load.outcomes[status] for status in REFUSED)
    return Turn(
        load.rate,
        percentile(load.latencies, 50),
        percentile(load.latencies, 95),
        percentile(load.latencies, 99),
        cpu=None if spent is None or not load.answered else spent / load.answered,
        cores=None if spent is None else spent / seconds,
        memory=after.memory if peak is None else peak,
        memory_before=before.memory,
        memory_after=after.memory,
        generator_cpu=load.cpu_seconds / load.answered if load.answered else None,
        refused=refused / load.outcomes.total() if load.outcomes else None,
        refusal_p50=percentile(load.refusals, 50),
        refusal_p99=percentile(load.refusals, 99),
        back=load.back,
        failed=Counter({what: n for what, n in load.outcomes.items() if what not in (ANSWERED, *REFUSED)}),
    )


def of_raw(done: Done) -> Turn:
    return Turn(
        done.images / done.seconds,
        percentile(done.latencies, 50),
        percentile(done.latencies, 95),
        percentile(done.latencies, 99),
        cpu=done.cpu_seconds / done.images,
        cores=done.cpu_seconds / done.seconds,
        memory=done.memory,
    )


def percentile(values: Sequence[float], rank: float) -> Number:
    return float(np.percentile(values, rank)) if values else None


def median(turns: Sequence[Turn], of: Callable[[Turn], Number]) -> Number:
    """The median over the turns that have this figure."""
    known = [value for turn in turns if (value := of(turn)) is not None]
    return statistics.median(known) if known else None


def ratio(turns: Sequence[Turn], others: Sequence[Turn], of: Callable[[Turn], Number]) -> Number:
    """The median over the rounds of one contender's figure divided by another's in the same round."""
    pairs = [(of(turn), of(other)) for turn, other in zip(turns, others, strict=True)]
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
    return statistics.median(ratios) if ratios else None


def failures(turns: Sequence[Turn]) -> Counter[str]:
    return sum((turn.failed for turn in turns), Counter())
