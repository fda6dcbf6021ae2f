"""The memories of one prompt: what the search finds, ranked by a policy, as far as tokens and diversity let them in."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from memos_vllm.cube import MemCube, Plaintext, SemanticType
from memos_vllm.errors import StartError
from memos_vllm.retrieval.base import Hit, Operator
from memos_vllm.scheduler.diversity import Marginal, Similarity, by_vectors, by_words
from memos_vllm.scheduler.filling import Choice, CountTokens, Filling, LeftOut, Ranked
from memos_vllm.scheduler.form import LEARNED, Forms, plain_forms
from memos_vllm.scheduler.order import placed
from memos_vllm.scheduler.policies import Candidate, Policy, PolicyName, Question, policy_named, score_of
from memos_vllm.vault.records import Uses
from memos_vllm.vault.words import words_of

POOL, MAX_POOL = 3, 64
"""A policy picks top_k memories among those that the search ranks first: POOL times as many more, MAX_POOL at most."""
KEPT = 2
"""Memories of the turn before stay while a prompt has at most KEPT times top_k."""
ALIKE = 0.5
"""Similarity from which on a memory that was left out is said to resemble one that was not."""


@dataclass(frozen=True)
class MemoryPlan:
    """chosen: in prompt order; left_out: best first; tokens: those of the chosen together; budget: what they may take;
    considered: number of candidates.
    """

    policy: PolicyName
    budget: int
    tokens: int
    considered: int
    chosen: Sequence[Choice]
    left_out: Sequence[LeftOut]

    @property
    def cubes(self) -> list[MemCube]:
        """The cubes that the prompt's text is made of, in order."""
        return [choice.cube for choice in self._texts if choice.form != "adapter"]

    @property
    def learned(self) -> list[MemCube]:
        """The cubes that the adapter which answers knows, so that their text is left out."""
        return [choice.cube for choice in self._texts if choice.form == "adapter"]

    @property
    def _texts(self) -> list[Choice]:
        return [choice for choice in self.chosen if isinstance(choice.cube.payload, Plaintext)]


class Call(Protocol):
    """What a prompt's memories are looked for with: `reader.MemoryCall` is one.

    owners: whose cubes are meant, the caller's own first; window: see `Operator.search`.
    """

    @property
    def caller(self) -> str: ...

    @property
    def query(self) -> str: ...

    @property
    def owners(self) -> Sequence[str]: ...

    @property
    def types(self) -> Collection[SemanticType]: ...

    @property
    def window(self) -> Any: ...


@dataclass(frozen=True)
class Asking:
    """A Call of nothing but a question."""

    caller: str
    query: str
    types: tuple[SemanticType, ...] = ()
    window: None = None

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.caller,)


class MemScheduler:
    """Thread-safe.

    top_k: memories a prompt is given at most, those kept from the turn before not counted; token_budget: tokens that
    their texts may take together; uses, vectors: by cube ids, how often each was used, and vectors for diversity.
    Without these nothing counts as used, and words tell what is alike.
    """

    def __init__(
        self,
        operator: Operator,
        *,
        top_k: int,
        token_budget: int,
        policy: str = "semantic",
        uses: Callable[[Collection[str]], Mapping[str, Uses]] | None = None,
        vectors: Callable[[Collection[str]], Mapping[str, Any]] | None = None,
    ) -> None:
        if top_k < 1 or token_budget < 1:
            raise StartError(f"top_k ({top_k}) and token_budget ({token_budget}) must be at least 1.")
        self._operator = operator
        self._top_k = top_k
        self.token_budget = token_budget
        self.policy = policy_named(policy)
        self._uses, self._vectors = uses, vectors

    def choose(self, principal: str, query: str, count_tokens: CountTokens) -> list[MemCube]:
        """The cubes of a prompt that begins a conversation, in prompt order. Raises VaultUnavailable."""
        return self.plan(Asking(principal, query), count_tokens).cubes

    def plan(
        self,
        call: Call,
        count_tokens: CountTokens,
        *,
        policy: str | None = None,
        before: Sequence[MemCube] = (),
        budget: int | None = None,
        forms: Forms = plain_forms,
        known: Collection[str] = (),
    ) -> MemoryPlan:
        """Which memories the prompt gets, in which order and form, and why; asking changes nothing.

        policy, budget (tokens): None for the server's; before: the cubes that the conversation's turn before was given,
        in its order, as they are now and as far as they may still be used; known: see `Filling`.
        Only cubes of the call's owners, the caller and, where the question asks for it, their groups: a grant lets
        others offer text, not put it into somebody's prompts.
        A cube that does not fit is passed over, a smaller one after it may still get in. At the beginning of a
        conversation the order is that of the ids: the same set gives the same prompt, whatever the query.
        Raises BadInput for an unknown policy, VaultUnavailable.
        """
        ranking = self.policy if policy is None else policy_named(policy)
        room = self.token_budget if budget is None else min(budget, self.token_budget)
        filling = Filling(room, count_tokens, known)
        ranked = self._within_licence(_ranked(ranking, self._candidates(call, ranking, before), call), filling)
        rest = self._take_best(filling, ranked)
        places = {cube.id: place for place, cube in enumerate(before)}
        self._keep(filling, rest, places)
        return _plan(ranking, room, filling, places, forms)

    def _candidates(self, call: Call, policy: Policy, before: Sequence[MemCube]) -> list[Candidate]:
        """What the search ranks first, then what only the turn before had.

        Where nothing matches ("thanks"), the search answers with what is most recent: that begins a conversation, and
        an old one goes on with what it has.
        """
        hits = self._search(call)
        best = max((hit.score for hit in hits), default=0.0)
        found = [Candidate(hit.cube, hit.score / best if best > 0 else 0.0) for hit in hits if best > 0 or not before]
        known = {candidate.cube.id for candidate in found}
        found += [Candidate(cube, 0.0) for cube in before if cube.id not in known]
        return self._with_uses(found) if policy.needs_uses else found

    def _search(self, call: Call) -> list[Hit]:
        """Among the cubes of the call's owners; a time that the question names is left aside where nothing is of it."""
        count = self._top_k + min(POOL * self._top_k, MAX_POOL)
        owners = [*call.owners]
        if call.window is not None:
            hits = self._operator.search(owners, call.query, top_k=count, filters={"owner": owners}, window=call.window)
            if hits:
                return hits
        return self._operator.search(owners, call.query, top_k=count, filters={"owner": owners})

    def _with_uses(self, candidates: list[Candidate]) -> list[Candidate]:
        if self._uses is None:
            return candidates
        uses = self._uses([candidate.cube.id for candidate in candidates])
        return [replace(candidate, uses=uses.get(candidate.cube.id, Uses())) for candidate in candidates]

    def _within_licence(self, ranked: Sequence[Ranked], filling: Filling) -> list[Ranked]:
        """Those whose licence lets them into one more prompt; the others are left out."""
        terms = {entry.cube.id: entry.cube.header.licence for entry in ranked if entry.cube.header.licence}
        uses = self._uses([*terms]) if self._uses and terms else {}
        ended = {cube_id for cube_id, licence in terms.items() if licence.ended(uses.get(cube_id, Uses()).count)}
        for entry in ranked:
            if entry.cube.id in ended:
                filling.leave(entry, "its licence has ended")
        return [entry for entry in ranked if entry.cube.id not in ended]

    def _take_best(self, filling: Filling, ranked: Sequence[Ranked]) -> list[tuple[Ranked, str]]:
        """Fill in the best ones, top_k at most; returns those that were not tried, each with the reason."""
        waiting = Marginal([entry.score for entry in ranked], self._similarity(ranked))
        while filling.count < self._top_k and (place := waiting.pop()) is not None:
            if filling.add(ranked[place], ranked[place].why):
                waiting.take(place)
        return [(ranked[place], self._why_not(waiting, place, ranked)) for place in waiting.places()]

    def _why_not(self, waiting: Marginal, place: int, ranked: Sequence[Ranked]) -> str:
        similarity, nearest = waiting.nearest[place]
        alike = f"; much like {ranked[nearest].cube.id}" if similarity >= ALIKE else ""
        return f"not among the best {self._top_k}{alike}"

    def _keep(self, filling: Filling, rest: Sequence[tuple[Ranked, str]], places: Mapping[str, int]) -> None:
        """Fill what room is left with memories of the turn before, its first ones first: they begin the prompt."""
        for entry, _ in sorted(rest, key=lambda one: places.get(one[0].cube.id, len(places))):
            if entry.cube.id in places and filling.count < KEPT * self._top_k:
                filling.add(entry, "kept from the turn before")
        known = {entry.cube.id for entry, _, _ in filling.taken} | {left.cube_id for left in filling.left}
        for entry, why in rest:
            if entry.cube.id not in known:
                filling.leave(entry, why)

    def _similarity(self, ranked: Sequence[Ranked]) -> Similarity:
        cubes = [entry.cube for entry in ranked]
        return by_vectors(cubes, self._vectors([cube.id for cube in cubes])) if self._vectors else by_words(cubes)


def _ranked(policy: Policy, candidates: Sequence[Candidate], call: Call) -> list[Ranked]:
    """The candidates in the search's order, with the policy's scores."""
    question = Question(frozenset(words_of(call.query)), call.types, time.time())
    ranked = []
    for candidate in candidates:
        signal = policy.signal(candidate, question)
        parts = {"relevance": candidate.relevance, policy.name: signal.value}
        ranked.append(Ranked(candidate.cube, score_of(policy, candidate, signal), parts, signal.why))
    return ranked


def _plan(policy: Policy, budget: int, filling: Filling, places: Mapping[str, int], forms: Forms) -> MemoryPlan:
    taken = {entry.cube.id: (entry, tokens, why) for entry, tokens, why in filling.taken}
    cubes = placed([entry.cube for entry, _, _ in filling.taken], places)
    chosen = []
    for cube, own in zip(cubes, forms(cubes), strict=True):
        shape = LEARNED if filling.knows(cube) else own
        entry, tokens, why = taken[cube.id]
        reason = f"{why}; as {shape.form}: {shape.why}"
        chosen.append(Choice(cube, entry.score, entry.parts, tokens, shape.form, reason))
    left_out = sorted(filling.left, key=lambda left: -left.score)
    return MemoryPlan(
        policy=policy.name,
        budget=budget,
        tokens=budget - filling.room,
        considered=len(chosen) + len(left_out),
        chosen=chosen,
        left_out=left_out,
    )
