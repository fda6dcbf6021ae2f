"""The contract of every policy: what speaks for a memory beside its relevance to the question."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from memos_vllm.cube import MemCube, SemanticType
from memos_vllm.vault.records import Uses

PolicyName = Literal["semantic", "lru", "label", "frequency", "priority"]

NO_USES = Uses()
TIE = 0.2
"""Weight of relevance under a policy that goes by something else: between memories that are alike to it the search
decides, and no relevance lifts a memory over another of a higher priority."""


@dataclass(frozen=True)
class Candidate:
    """A memory that may enter a prompt. relevance: the search's score over its best one, from 0 to 1."""

    cube: MemCube
    relevance: float
    uses: Uses = NO_USES


@dataclass(frozen=True)
class Question:
    """What a prompt asks for. words: those of its query, stemmed; types: kinds of memory it wants, empty for all;
    now: Unix time in seconds.
    """

    words: Collection[str]
    types: Collection[SemanticType]
    now: float


@dataclass(frozen=True)
class Signal:
    """value: from 0 to 1, 1 speaking most for the memory; why: it in words."""

    value: float
    why: str


class Policy(Protocol):
    """Stateless. The score of a memory is `relevance * candidate.relevance + (1 - relevance) * signal`, from 0 to 1.

    relevance: weight of what the search says; needs_uses: whether `signal` reads `candidate.uses`.
    """

    @property
    def name(self) -> PolicyName: ...

    @property
    def relevance(self) -> float: ...

    @property
    def needs_uses(self) -> bool: ...

    def signal(self, candidate: Candidate, question: Question) -> Signal: ...


def score_of(policy: Policy, candidate: Candidate, signal: Signal) -> float:
    return policy.relevance * candidate.relevance + (1 - policy.relevance) * signal.value
