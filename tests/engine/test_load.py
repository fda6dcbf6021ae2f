"""Many requests at once, with too few blocks, rows, tokens and bytes for all of them: every answer is the one alone."""

from __future__ import annotations

import ctypes
import os
import random
from pathlib import Path
from typing import Any

import psutil

from memos_vllm.activation.compose import Part
from tests.engine import child
from tests.engine.harness import Engine, plan_for, prompt_of
from tests.engine.test_splice_plans import TOLERANCE, tokens

POLICIES = ("none", "head:4", "head:16", "full")
STREAMS = 32
REQUESTS = int(os.environ.get("MEMOS_LOAD_REQUESTS", "400"))
BATCHES, WARM_UP = 5, 3
MIB = 1 << 20


def tight_engine(model: Path, memory_dir: Path) -> Engine:
    """192 tokens and 12 rows a step, 40 blocks of 64 tokens, RAM for a third of the cubes."""
    return Engine(
        model, memory_dir, ram_bytes=3 * MIB,
        max_model_len=1024, max_num_batched_tokens=192, max_num_seqs=12, num_gpu_blocks_override=40,
    )  # fmt: skip


def cubes_of(engine: Engine, count: int, longest: int = 150) -> tuple[Part, list[Part]]:
    rng = random.Random(1)
    scaffold = engine.scaffold(tokens(rng, 30))
    return scaffold, [engine.capture(scaffold, tokens(rng, rng.randint(20, longest))) for _ in range(count)]


def streams_with_mixed_plans(model: Path, memory_dir: Path) -> None:
    engine = tight_engine(model, memory_dir)
    scaffold, cubes = cubes_of(engine, 20)
    rng = random.Random(2)
    requests, policies = [], []
    for number in range(STREAMS):
        parts = rng.sample(cubes, rng.randint(1, 5))
        policy = POLICIES[number % len(POLICIES)]
        prompt = prompt_of(scaffold, parts, tokens(rng, rng.randint(1, 40)))
        requests.append((prompt, plan_for(scaffold, parts, policy) if number % 8 else None, None))
        policies.append(policy)
    preempted, evicted = engine.preemptions(), engine.tiers.stats().evictions
    together = engine.ask_all(requests, tokens=60)
    assert engine.preemptions() > preempted, "the pool was meant to be too small"
    assert engine.tiers.stats().evictions > evicted, "the RAM was meant to be too small"
    for (prompt, plan, _), policy, answer in zip(requests, policies, together, strict=True):
        assert "fallback" not in answer.report, answer.report
        alone = engine.ask(prompt, plan if policy != "full" else None, tokens=60)
        assert answer.tokens == alone.tokens
        assert answer.distance(alone) <= TOLERANCE
    engine.check_integrity()
    engine.close()


def test_32_streams_with_mixed_plans_answer_as_alone(random_llama: Path, tmp_path: Path) -> None:
    child.run(streams_with_mixed_plans, random_llama, tmp_path)


def resident_bytes() -> int:
    """Of this process, once the C library has given back what it only keeps for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def thousands_of_requests(model: Path, memory_dir: Path) -> None:
    """Plain and spliced requests by turns, the same ones in every turn: torch keeps something for every new shape of a
    matrix, which is not what is asked here. Offline vLLM grows a little with every request; splicing must add nothing.
    """
    engine = tight_engine(model, memory_dir)
    scaffold, cubes = cubes_of(engine, 20, longest=60)
    rng, grown = random.Random(3), {False: 0, True: 0}
    batches: dict[bool, list[list[Any]]] = {False: [], True: []}
    for _ in range(BATCHES):
        drawn = [rng.sample(cubes, rng.randint(1, 3)) for _ in range(STREAMS)]
        prompts = [prompt_of(scaffold, parts, tokens(rng, 8)) for parts in drawn]
        plans = [plan_for(scaffold, parts, rng.choice(POLICIES)) for parts in drawn]
        batches[False].append([(prompt, None, None) for prompt in prompts])
        batches[True].append([(prompt, plan, None) for prompt, plan in zip(prompts, plans, strict=True)])
    for turn in range(2 * REQUESTS // STREAMS // BATCHES + 2 * WARM_UP):
        spliced, before = turn % 2 == 1, resident_bytes()
        for batch in batches[spliced]:
            engine.ask_all(batch, tokens=2)
        if turn >= 2 * WARM_UP:
            grown[spliced] += resident_bytes() - before
    engine.check_integrity()
    assert len(engine.half.tracked) <= STREAMS, "requests that have ended are forgotten a step later"
    assert grown[True] - grown[False] < 16 * MIB, grown
    engine.close()


def test_memory_does_not_grow(random_llama: Path, tmp_path: Path) -> None:
    child.run(thousands_of_requests, random_llama, tmp_path)
