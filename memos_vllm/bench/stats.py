"""From samples to rows: medians and quartiles. Times are skewed, so there are no means here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from memos_vllm.bench.arms import FLOOR, REORDERED, Arm


@dataclass(frozen=True)
class Quartiles:
    """First quartile, median and third quartile, by linear interpolation between order statistics."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Raises ValueError for an empty sequence."""
        if not values:
            raise ValueError("quartiles of nothing")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Sample:
    """One measured request; `ttft` in seconds, the rest in tokens. `cached` came from vLLM's prefix cache."""

    arm: str
    context: int
    query: int
    repetition: int
    ttft: float
    prompt: int
    cached: int
    spliced: int = 0
    repaired: int = 0


@dataclass(frozen=True)
class Build:
    """How the KV cubes of a context were made: seconds from the POST until all were ready, and each one's prefill."""

    context: int
    seconds: float
    cube_seconds: tuple[float, ...]
    kv_bytes: int


@dataclass(frozen=True)
class Row:
    """One arm at one size. `to_floor` and `speed_up` are ratios of medians; `break_even` counts uses of a build."""

    context: int
    query: int
    arm: str
    samples: int
    prompt: int
    cached: int
    spliced: int
    repaired: int
    q1: float
    median: float
    q3: float
    to_floor: float
    speed_up: float
    break_even: int | None


def break_even(build_seconds: float, saved_seconds: float) -> int | None:
    """Uses after which a build has paid for itself; None when a use saves nothing."""
    return math.ceil(build_seconds / saved_seconds) if saved_seconds > 0 else None


def summarise(samples: Sequence[Sample], builds: Sequence[Build], arms: Sequence[Arm]) -> list[Row]:
    """One row for each arm at each size, sizes in the order of the samples' sizes, arms in their own."""
    sizes = sorted({(sample.context, sample.query) for sample in samples})
    return [row for size in sizes for row in _rows(size, samples, builds, arms)]


def _rows(size: tuple[int, int], samples: Sequence[Sample], builds: Sequence[Build], arms: Sequence[Arm]) -> list[Row]:
    here = {arm.name: [s for s in samples if s.arm == arm.name and (s.context, s.query) == size] for arm in arms}
    times = {name: Quartiles.of([sample.ttft for sample in found]) for name, found in here.items()}
    build = Quartiles.of([build.seconds for build in builds if build.context == size[0]]).median
    floor, reordered = times[FLOOR.name].median, times[REORDERED.name].median
    return [
        Row(
            context=size[0],
            query=size[1],
            arm=arm.name,
            samples=len(here[arm.name]),
            **{kind: _middle(here[arm.name], kind) for kind in ("prompt", "cached", "spliced", "repaired")},
            q1=times[arm.name].q1,
            median=times[arm.name].median,
            q3=times[arm.name].q3,
            to_floor=times[arm.name].median / floor,
            speed_up=reordered / times[arm.name].median,
            break_even=break_even(build, reordered - times[arm.name].median) if arm.splices else None,
        )
        for arm in arms
    ]


def _middle(samples: Sequence[Sample], kind: str) -> int:
    return int(statistics.median_low([getattr(sample, kind) for sample in samples]))
