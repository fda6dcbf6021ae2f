"""The bundled model answers about people it never saw, from the prompt and from nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import memos_vllm
from memos_vllm.bench.people import HARD, filler, make_facts
from memos_vllm.bench.quality_cases import PEOPLE
from memos_vllm.bench.stories import KINDS, Kind, make_story
from memos_vllm.memory_block import INTRO, OUTRO, memory_line

ASSETS = Path(memos_vllm.__file__).parent / "assets"
TINY = ASSETS / "tiny"
MIB = 1 << 20
POSITIONS = 8192


@dataclass(frozen=True)
class Question:
    """A prompt as the server makes it, and the value that a right answer names."""

    prompt: str
    value: str


class Bundled:
    """The committed weights in transformers."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
        self.model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def answer(self, question: Question) -> str:
        ids = self.tokenizer.encode(question.prompt, add_special_tokens=False, return_tensors="pt")
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def accuracy(self, questions: list[Question]) -> float:
        return sum(question.value in self.answer(question) for question in questions) / len(questions)

    def question(self, rng: random.Random, facts: int, *, known: bool = True, tokens: int = 0) -> Question:
        """About one of `facts` held-out facts; with filler between them until the prompt has about `tokens` tokens."""
        told = make_facts(rng, facts, True, HARD)
        asked = rng.choice(told)
        lines = [fact.statement for fact in told if known or fact is not asked]
        length = sum(self.count(memory_line(line)) for line in lines) + 120
        while length < tokens:
            line = filler(rng)
            lines.insert(rng.randrange(len(lines) + 1), line)
            length += self.count(memory_line(line))
        return Question(self.prompt(lines, asked.question), asked.value)

    def story(self, rng: random.Random, kind: Kind) -> Question:
        """About what two memories tell together, of two to six with a sentence or two of filler in each."""
        story = make_story(rng, rng.randint(2, 6), [kind], held=True, mix=PEOPLE)
        lines = [memory.text(rng, rng.randint(1, 2)) for memory in story.memories]
        return Question(self.prompt(lines, story.asks[0].question), story.asks[0].value)

    def prompt(self, lines: list[str], question: str) -> str:
        system = INTRO + "".join(map(memory_line, lines)) + OUTRO
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.fixture(scope="module")
def bundled() -> Bundled:
    return Bundled()


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 12 * MIB


def test_it_answers_from_memory_about_people_it_never_saw(bundled: Bundled) -> None:
    rng = random.Random(1)
    assert bundled.accuracy([bundled.question(rng, rng.randint(1, 8)) for _ in range(150)]) >= 0.9


def test_it_knows_nothing_without_memory(bundled: Bundled) -> None:
    rng = random.Random(2)
    assert bundled.accuracy([bundled.question(rng, rng.randint(1, 8), known=False) for _ in range(100)]) <= 0.1


def test_it_answers_at_any_position(bundled: Bundled) -> None:
    """Two facts at random places among filler, in prompts of up to 8,192 tokens."""
    rng = random.Random(3)
    questions = [bundled.question(rng, 2, tokens=tokens) for tokens in (1000, 2000, 4000, 6000, 7900) for _ in range(8)]
    assert all(bundled.count(question.prompt) <= POSITIONS for question in questions)
    assert bundled.accuracy(questions) >= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_across_memories(bundled: Bundled, kind: Kind) -> None:
    rng = random.Random(4)
    assert bundled.accuracy([bundled.story(rng, kind) for _ in range(60)]) >= 0.8


def test_other_roles_are_refused_by_the_template(bundled: Bundled) -> None:
    with pytest.raises(Exception, match="roles are system, user and assistant"):
        bundled.tokenizer.apply_chat_template([{"role": "robot", "content": "x"}], tokenize=False)
