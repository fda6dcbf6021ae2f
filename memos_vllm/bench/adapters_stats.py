"""From samples to rows: quartiles of each arm, and its ratio to vLLM's own LoRA in the same round, with an interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from memos_vllm.bench.adapters_client import ARMS, VLLM
from memos_vllm.bench.stats import Quartiles

RATE, TTFT = "requests/s", "TTFT"
HOT, WARM, COLD, NEW = LOADS = ("hot", "warm load", "cold load", "new user")
"""Time to the first token of an adapter in a slot of the engine; in its RAM and in no slot; in none of its caches; and
of one that is still with its user: storing it counts.
"""
DRAWS = 4000
INTERVAL = 0.95


@dataclass(frozen=True)
class Sample:
    """One value of one arm. start: of the servers; round: of a start, those of the same round were measured one after
    another; value: 1/s or s.
    """

    measure: str
    users: int
    arm: str
    start: int
    round: int
    value: float


@dataclass(frozen=True)
class Row:
    """One arm's values. ratio: median over the rounds of all starts of its ratio to vLLM's own LoRA, which is measured
    in the same round; low and high: 95 % interval of that median, see `interval`.
    """

    measure: str
    users: int
    arm: str
    samples: int
    q1: float
    median: float
    q3: float
    ratio: float
    low: float
    high: float


def summarise_adapters(samples: Sequence[Sample]) -> list[Row]:
    """A row for each arm of each measure at each number of users, in the order of their first samples."""
    kinds = dict.fromkeys((sample.measure, sample.users) for sample in samples)
    rows = []
    for measure, users in kinds:
        here = [sample for sample in samples if (sample.measure, sample.users) == (measure, users)]
        arms = [arm for arm in ARMS if any(sample.arm == arm for sample in here)]
        rows += [_row(measure, users, arm, here) for arm in arms]
    return rows


def _row(measure: str, users: int, arm: str, here: Sequence[Sample]) -> Row:
    values = [sample.value for sample in here if sample.arm == arm]
    quartiles = Quartiles.of(values)
    ratios = ratios_by_start(here, arm)
    return Row(
        measure, users, arm, len(values), quartiles.q1, quartiles.median, quartiles.q3,
        statistics.median(chain.from_iterable(ratios)), *interval(ratios),
    )  # fmt: skip


def ratios_by_start(samples: Sequence[Sample], arm: str) -> list[list[float]]:
    """An arm's ratio to vLLM's own LoRA in each round, for each start; samples: of one measure, one number of users."""
    mine, vllm = _by_round(samples, arm), _by_round(samples, VLLM)
    starts: dict[int, list[float]] = {}
    for start, number in sorted(mine):
        starts.setdefault(start, []).append(mine[start, number] / vllm[start, number])
    return list(starts.values())


def _by_round(samples: Sequence[Sample], arm: str) -> dict[tuple[int, int], float]:
    """The median of each round of each start."""
    found: dict[tuple[int, int], list[float]] = {}
    for sample in samples:
        if sample.arm == arm:
            found.setdefault((sample.start, sample.round), []).append(sample.value)
    return {place: statistics.median(values) for place, values in found.items()}


def interval(starts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % interval of the median of all values, by the percentile bootstrap; the same for the same values.

    A server may be faster or slower than another of its kind for as long as it lives, so where there are several
    starts, starts are drawn first and rounds within them. Of two or three starts this makes the interval too narrow.
    """
    rng = random.Random(0)

    def draw() -> float:
        drawn = rng.choices(starts, k=len(starts))
        return statistics.median(chain.from_iterable(rng.choices(values, k=len(values)) for values in drawn))

    medians = sorted(draw() for _ in range(DRAWS))
    cut = round(DRAWS * (1 - INTERVAL) / 2)
    return medians[cut], medians[-1 - cut]
