"""The training loop: LoRA on questions without their memories, held to the base model on replayed prompts.

Loss = cross-entropy of the answers + weight × KL(base ‖ adapter) over the replayed answers, per token.

What a step draws depends on the seed and the step's number alone, so a training that was killed goes on from its
checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from memos_vllm.parameter.model import Model, Turn
from memos_vllm.parameter.progress import Tell
from memos_vllm.parameter.recipe import Recipe

WARM_UP = 0.05
LAST_RATE = 0.02
"""Shares of the steps and of the learning rate: a rise at the start, a cosine fall to the end."""


@dataclass(frozen=True)
class Lesson:
    """What is learned of one fact: its questions with their answers, of which a step draws one."""

    turns: tuple[Turn, ...]


class Training:
    """One training of an attached adapter; `run` ends it, from the checkpoint of an earlier run where there is one."""

    def __init__(
        self, model: Model, lessons: Sequence[Lesson], replays: Sequence[Turn], recipe: Recipe, checkpoint: Path
    ) -> None:
        import torch

        self.model, self.lessons, self.replays = model, lessons, replays
        self.recipe, self.checkpoint = recipe, checkpoint
        self.weights = [value for value in model.net.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
        self.steps = max(1, math.ceil(recipe.epochs * recipe.phrasings * len(lessons) / recipe.batch))
        self.done = 0
        self.loss = math.nan
        self.digest = self._digest()

    def run(self, tell: Tell) -> None:
        """Train to the end, and remove the checkpoint."""
        self._resume()
        self.model.net.train()
        saved = time.monotonic()
        while self.done < self.steps:
            tell("training", self.done, self.steps)
            self._step(self.done)
            self.done += 1
            if time.monotonic() - saved >= self.recipe.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self.model.net.eval()
        tell("training", self.steps, self.steps)

    def _step(self, number: int) -> None:
        import torch

        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.model.width) * rate_at(number, self.steps)
        with self.precision():
            self._learn(self._drawn(number))
            self._replay(number)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _replay(self, number: int) -> None:
        recipe = self.recipe
        if recipe.replay_weight and recipe.replays and self.replays:
            rng = random.Random(f"{recipe.seed} replays {number}")
            self._hold(rng.sample(self.replays, min(recipe.replays, len(self.replays))))

    def precision(self) -> AbstractContextManager[Any]:
        """bfloat16 in matrix products where the recipe asks for it; weights, gradients and losses are float32."""
        import torch

        on = self.recipe.precision == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if on else nullcontext()

    def _drawn(self, number: int) -> list[Turn]:
        """A phrasing of each fact of this step. Facts come in rounds, each in an order of its own."""
        seed, facts = self.recipe.seed, len(self.lessons)
        drawn = []
        for place in range(number * self.recipe.batch, (number + 1) * self.recipe.batch):
            order = random.Random(f"{seed} round {place // facts}").sample(range(facts), facts)
            turns = self.lessons[order[place % facts]].turns
            drawn.append(turns[random.Random(f"{seed} phrasing {place}").randrange(len(turns))])
        return drawn

    def _learn(self, turns: Sequence[Turn]) -> None:
        import torch.nn.functional as F

        logits, ids = self.model.answer_logits(turns)
        loss = F.cross_entropy(logits, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        self.loss = loss.item()

    def _hold(self, turns: Sequence[Turn]) -> None:
        import torch
        import torch.nn.functional as F

        with torch.no_grad(), self.model.base():
            wanted = self.model.answer_logits(turns)[0].log_softmax(-1)
        said = self.model.answer_logits(turns)[0].log_softmax(-1)
        loss = F.kl_div(said, wanted, log_target=True, reduction="batchmean")
        (self.recipe.replay_weight * loss).backward()  # type: ignore[no-untyped-call]

    def _resume(self) -> None:
        import torch

        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
        if state["what"] != self.digest:
            return
        with torch.no_grad():
            for weight, saved in zip(self.weights, state["weights"], strict=True):
                weight.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["done"]

    def _save(self) -> None:
        import torch

        state = {"what": self.digest, "done": self.done, "optimizer": self.optimizer.state_dict()}
        aside = self.checkpoint.with_suffix(".new")
        with aside.open("wb") as file:
            torch.save(state | {"weights": [weight.detach() for weight in self.weights]}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.checkpoint)

    def _digest(self) -> str:
        """Of everything that a step depends on: a checkpoint of another training is not gone on from."""
        parts = (self.recipe, [lesson.turns for lesson in self.lessons], list(self.replays))
        return xxhash.xxh3_128(repr(parts).encode()).hexdigest()


def rate_at(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    gone = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * gone))
