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
from typing import TYPE_CHECKING, Any

import xxhash

from memos_vllm.parameter.model import Model, Turn
from memos_vllm.parameter.progress import Tell
from memos_vllm.parameter.recipe import Recipe

if TYPE_CHECKING:
    import torch

WARM_UP = 0.05
LAST_RATE = 0.02
"""Shares of the steps and of the learning rate: a rise at the start, a cosine fall to the end."""
FEWEST = 4
"""Facts in a step, where there are too few for a quarter of them to be more: a few facts need many steps too."""
OPEN_SHARE = 0.12
"""How often a fact is learned as the answer to an open question."""
MICRO_TOKENS = 8192
"""Tokens in one forward pass of a step."""
MAX_SPREAD = 1.5
"""The longest row of a pass against its shortest."""
WANTED_BYTES = 1 << 28
"""Most that is kept of what the base model says to replayed prompts; beyond, it is asked in every step."""


@dataclass(frozen=True)
class Lesson:
    """What is learned of one fact: its questions with their answers, and open questions that it answers."""

    turns: tuple[Turn, ...]
    opened: tuple[Turn, ...] = ()


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
        self.batch = min(recipe.batch, max(FEWEST, len(lessons) // 4))
        self.steps = max(1, math.ceil(recipe.epochs * recipe.phrasings * len(lessons) / self.batch))
        self.done = 0
        self.loss = math.nan
        self.digest = self._digest()
        self.wanted: dict[int, torch.Tensor] = {}
        tokens = sum(len(turn.answer) for turn in replays)
        self.keeps_wanted = 4 * tokens * model.vocabulary <= WANTED_BYTES

    def run(self, tell: Tell) -> None:
        """Train to the end."""
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

        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.model.width) * rate_at(number, self.steps)
        with self._precision():
            self._learn(self._drawn(number))
            self._hold(self._drawn_replays(number))
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _precision(self) -> AbstractContextManager[Any]:
        """bfloat16 in matrix products where the recipe asks for it; weights, gradients and losses are float32."""
        import torch

        on = self.recipe.precision == "bfloat16"
        return torch.autocast(self.model.device.type, torch.bfloat16) if on else nullcontext()

    def _drawn(self, number: int) -> list[Turn]:
        """A phrasing of each fact of this step. Facts come in rounds, each in an order of its own."""
        seed, facts = self.recipe.seed, len(self.lessons)
        drawn = []
        for place in range(number * self.batch, (number + 1) * self.batch):
            order = random.Random(f"{seed} round {place // facts}").sample(range(facts), facts)
            lesson, rng = self.lessons[order[place % facts]], random.Random(f"{seed} phrasing {place}")
            opened = lesson.opened and rng.random() < OPEN_SHARE
            drawn.append(rng.choice(lesson.opened if opened else lesson.turns))
        return drawn

    def _drawn_replays(self, number: int) -> list[int]:
        recipe = self.recipe
        if not recipe.replay_weight:
            return []
        rng = random.Random(f"{recipe.seed} replays {number}")
        return rng.sample(range(len(self.replays)), min(recipe.replays, len(self.replays)))

    def _learn(self, turns: Sequence[Turn]) -> None:
        """Add the gradient of the mean cross-entropy of the answers' tokens."""
        import torch.nn.functional as F

        total, self.loss = sum(len(turn.answer) for turn in turns), 0.0
        for part in alike([len(turn.prompt) + len(turn.answer) for turn in turns]):
            logits, ids = self.model.answer_logits([turns[place] for place in part])
            loss = F.cross_entropy(logits, ids, reduction="sum") / total
            loss.backward()  # type: ignore[no-untyped-call]
            self.loss += loss.item()

    def _hold(self, replays: Sequence[int]) -> None:
        """Add the gradient of the mean divergence from the base model over the replayed answers' tokens."""
        import torch.nn.functional as F

        turns = [self.replays[place] for place in replays]
        total = sum(len(turn.answer) for turn in turns)
        for part in alike([len(turn.prompt) + len(turn.answer) for turn in turns]):
            wanted = self._wanted([replays[place] for place in part])
            said = self.model.answer_logits([turns[place] for place in part])[0].log_softmax(-1)
            loss = F.kl_div(said, wanted, log_target=True, reduction="sum")
            (self.recipe.replay_weight / total * loss).backward()  # type: ignore[no-untyped-call]

    def _wanted(self, replays: Sequence[int]) -> torch.Tensor:
        """The base model's log-probabilities. What is kept is computed row by row: a batch would round otherwise, and a
        training that goes on from a checkpoint would differ in the last bit.
        """
        import torch

        with torch.no_grad(), self.model.base():
            if not self.keeps_wanted:
                return self.model.answer_logits([self.replays[place] for place in replays])[0].log_softmax(-1)
            for place in replays:
                if place not in self.wanted:
                    self.wanted[place] = self.model.answer_logits([self.replays[place]])[0].log_softmax(-1)
        return torch.cat([self.wanted[place] for place in replays])

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
        parts = (self.recipe, list(self.lessons), list(self.replays))
        return xxhash.xxh3_128(repr(parts).encode()).hexdigest()


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of rows in groups of like lengths, so that little is padded and no group is too large."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        length = lengths[place]
        if not groups or length > MAX_SPREAD * lengths[groups[-1][0]] or (len(groups[-1]) + 1) * length > MICRO_TOKENS:
            groups.append([])
        groups[-1].append(place)
    return groups


def rate_at(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    gone = (step - warm) / max(1, steps - warm)
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * gone))
