"""A small persona, a recipe that takes seconds, and the bundled model, for tests that train for real."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from memos_vllm.bench.arguments import BUNDLED
from memos_vllm.parameter.consolidate import Memory
from memos_vllm.parameter.model import Model
from memos_vllm.parameter.recipe import Recipe

TEXTS = (
    "My favourite tea is sencha.",
    "I live in Dakar.",
    "Maya plays the cello.",
    "Maya likes the colour teal best.",
    "Noah has a dog called Waffles.",
    "Noah works as a potter.",
)
MEMORIES = [Memory(f"memory-{place}@1", text) for place, text in enumerate(TEXTS)]
QUICK = Recipe(
    epochs=2,
    phrasings=2,
    batch=6,
    replays=2,
    pool=4,
    teach=False,
    checkpoint_seconds=0.0,
    max_answer_tokens=4,
    recall_questions=0,
)
THOROUGH = Recipe(
    epochs=28,
    phrasings=1,
    batch=6,
    replays=5,
    replay_weight=4.0,
    pool=32,
    max_answer_tokens=16,
    max_recall_loss=0.1,
    recall_questions=30,
)


def model() -> Model:
    """The bundled model, anew: an attached adapter changes its layers in place."""
    import torch

    torch.set_num_threads(1)
    return Model.load(str(BUNDLED), "cpu")


@cache
def environ() -> dict[str, str]:
    """Of a process that finds this tree and works on one core."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
