"""How an adapter is trained, and what it has to reach before it is kept."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from memos_vllm.errors import BadInput

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16"]
MAX_RANK = 512
MAX_SEED = 2**32 - 1
REST_ACCURACY = 0.88
"""`min_accuracy`, where none is given, of an adapter that is made anew to forget something: of what it still knows.

A little less than of others: whoever wants something forgotten is not to keep it for the sake of the rest.
"""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training. Raises BadInput (from `recipe_from`) for what cannot be trained.

    rank, scale: of the LoRA matrices; its product is multiplied by `scale`
    targets: names of the linear layers it is added to; empty for all but the output
    learning_rate: 0 for one that fits the width of the model
    epochs, phrasings: passes over the facts, and phrasings of each fact in a pass
    batch, replays: facts, of few at most a quarter, and replayed prompts in a step
    replay_weight: what the divergence from the base model on replayed prompts counts, against the facts' loss
    precision: of matrix products in training; bfloat16 is faster where the processor has it
    pool: prompts that are replayed, in all; teach: ask the base model with the memory in its prompt how it would answer
    recall_questions: asked about others in the exam, unless it is the caller's own
    min_accuracy: right answers to held-out phrasings, without memory in the prompt
    max_recall_loss: right answers from memories in the prompt that may be lost; max_perplexity_rise: on unrelated text
    """

    rank: int = 16
    scale: float = 2.0
    targets: tuple[str, ...] = ()
    learning_rate: float = 0.0
    epochs: int = 24
    phrasings: int = 3
    batch: int = 32
    replays: int = 24
    replay_weight: float = 8.0
    pool: int = 1152
    teach: bool = True
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "float32"
    max_answer_tokens: int = 48
    recall_questions: int = 200
    checkpoint_seconds: float = 20.0
    min_accuracy: float = 0.9
    max_recall_loss: float = 0.02
    max_perplexity_rise: float = 0.02

    def rate(self, width: int) -> float:
        """The learning rate for a model of this hidden width; a rule of thumb between 6e-3 (256) and 4e-4 (8,192)."""
        return self.learning_rate or 6e-3 * (256 / max(width, 256)) ** 0.78

    def problems(self) -> list[str]:
        """What is wrong with these settings, one line each."""
        whole = {"rank": MAX_RANK, "epochs": 100_000, "phrasings": 100, "batch": 4096, "max_answer_tokens": 4096}
        found = [
            f"{name} must be from 1 to {most}" for name, most in whole.items() if not 1 <= getattr(self, name) <= most
        ]
        found += [
            f"{name} must be from 0 on" for name in ("replays", "pool", "recall_questions") if getattr(self, name) < 0
        ]
        for name in ("scale", "learning_rate", "replay_weight", "checkpoint_seconds", "max_perplexity_rise"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                found.append(f"{name} must be a finite number from 0 on")
        for name in ("min_accuracy", "max_recall_loss"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} must be from 0 to 1")
        if self.scale == 0:
            found.append("scale must be above 0")
        if not 0 <= self.seed <= MAX_SEED:
            found.append(f"seed must be from 0 to {MAX_SEED}")
        return found


def recipe_from(fields: dict[str, Any], *, forgets: bool = False) -> Recipe:
    """A recipe of plain data; what is missing has its default. forgets: for an adapter made anew. Raises BadInput."""
    try:
        recipe = msgspec.convert({"min_accuracy": REST_ACCURACY, **fields} if forgets else fields, Recipe)
    except msgspec.ValidationError as error:
        raise BadInput(f"Not a recipe: {error}.") from error
    if problems := recipe.problems():
        raise BadInput(f"Not a recipe: {'; '.join(problems)}.")
    return recipe
