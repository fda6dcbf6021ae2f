"""Which memories a prompt gets: budget, diversity, forms, reasons, and what stays from turn to turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memos_vllm.cube import Header, MemCube, Parameter, completed
from memos_vllm.errors import BadInput, StartError
from memos_vllm.retrieval import Hit, MemOperator
from memos_vllm.retrieval.base import TimeWindow
from memos_vllm.scheduler import MemoryPlan, MemScheduler
from memos_vllm.scheduler.form import Shape
from memos_vllm.scheduler.plan import KEPT, Asking
from memos_vllm.vault import Uses, Vault


class Fixed:
    """An operator with a fixed ranking, best first; a time window that `old` is set for has nothing in it."""

    def __init__(self, cubes: Sequence[MemCube], scores: Sequence[float] = (), *, old: bool = False) -> None:
        self.hits = [Hit(cube, score) for cube, score in zip(cubes, scores or [1.0] * len(cubes), strict=True)]
        self.old = old

    def search(
        self,
        principals: str | Sequence[str],
        query: str,
        *,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        window: TimeWindow | None = None,
        **options: Any,
    ) -> list[Hit]:
        assert principals == ["maya"] and filters == {"owner": ["maya"]}
        return [] if window and self.old else self.hits[:top_k]

    def sentence_scores(self, query: str, text: str) -> list[tuple[int, int, float]]:
        return []


def words(cube: MemCube) -> int:
    return len(cube.text.split())


def cubes_of(*texts: str, **fields: Any) -> list[MemCube]:
    return [MemCube.plaintext(text, owner="maya", **fields) for text in texts]


def planned(
    cubes: Sequence[MemCube], top_k: int, token_budget: int, scores: Sequence[float] = (), **asked: Any
) -> MemoryPlan:
    scheduler = MemScheduler(Fixed(cubes, scores), top_k=top_k, token_budget=token_budget)
    return scheduler.plan(Asking("maya", "q"), words, **asked)


def chosen(cubes: Sequence[MemCube], top_k: int, token_budget: int) -> list[str]:
    scheduler = MemScheduler(Fixed(cubes), top_k=top_k, token_budget=token_budget)
    return [cube.text for cube in scheduler.choose("maya", "q", words)]


def reasons(plan: MemoryPlan) -> dict[str, str]:
    return {left.cube_id: left.why for left in plan.left_out}


def test_the_order_is_by_id_and_not_by_rank() -> None:
    cubes = cubes_of("a", "b", "c")
    in_order = [cube.text for cube in sorted(cubes, key=lambda cube: cube.id)]
    assert chosen(cubes, 3, 100) == chosen(cubes[::-1], 3, 100) == in_order


def test_the_budget_is_kept_and_filled_best_first() -> None:
    cubes = cubes_of("one", "two two two", "three three", "four")
    assert set(chosen(cubes, 4, 3)) == {"one", "three three"}
    assert set(chosen(cubes, 4, 2)) == {"one", "four"}
    assert set(chosen(cubes, 4, 7)) == {cube.text for cube in cubes}
    assert set(chosen(cubes, 1, 100)) == {"one"}


def test_a_request_may_have_less_room_and_never_more() -> None:
    cubes = cubes_of("one", "two two two")
    assert planned(cubes, 4, 4, budget=1).tokens == 1
    assert (planned(cubes, 4, 1, budget=4).tokens, planned(cubes, 4, 1, budget=4).budget) == (1, 1)


def test_payloads_without_text_are_passed_over() -> None:
    lora = completed(MemCube(Header(owner="maya"), Parameter("d", "m", 8, 1.0, ("q_proj",))))
    assert chosen([lora, *cubes_of("a")], 5, 5) == ["a"]


def test_an_adapter_is_a_form_and_a_request_has_one() -> None:
    first, second = (completed(MemCube(Header(owner="maya"), Parameter(d, "m", 8, 1.0, ("q_proj",)))) for d in "ab")
    plan = planned([first, *cubes_of("a"), second], 1, 5)
    assert {choice.cube.id: (choice.form, choice.tokens) for choice in plan.chosen}[first.id] == ("adapter", 0)
    assert [cube.text for cube in plan.cubes] == ["a"]
    assert list(reasons(plan)) == [second.id]


def test_every_candidate_is_chosen_or_left_out_with_a_reason() -> None:
    cubes = cubes_of("tea", "a long tale of tea and of coffee", "tea tea", "coffee")
    plan = planned(cubes, 2, 5, [0.9, 0.8, 0.7, 0.5])
    assert [choice.cube.text for choice in plan.chosen] == ["tea", "coffee"]
    why = reasons(plan)
    assert "takes 8 tokens, of which 4 are left" in why[cubes[1].id]
    assert "not among the best 2" in why[cubes[2].id] and f"much like {cubes[0].id}" in why[cubes[2].id]
    assert plan.considered == 4 == len(plan.chosen) + len(plan.left_out)
    assert (plan.tokens, plan.budget, plan.policy) == (2, 5, "semantic")
    assert plan.chosen[0].score == 1.0 and plan.chosen[0].parts["relevance"] == 1.0
    assert [left.score for left in plan.left_out] == sorted((left.score for left in plan.left_out), reverse=True)


def test_of_two_that_say_the_same_the_second_makes_way() -> None:
    cubes = cubes_of("I drink green tea at noon", "At noon I drink green tea", "My dog is called Rex")
    assert set(chosen(cubes, 2, 100)) == {cubes[0].text, cubes[2].text}
    assert set(chosen(cubes, 3, 100)) == {cube.text for cube in cubes}


def test_vectors_tell_what_is_alike_where_there_are_some() -> None:
    cubes = cubes_of("rain", "drizzle", "sun")
    near = {cubes[0].id: [1.0, 0.0], cubes[1].id: [0.9, 0.1], cubes[2].id: [0.0, 1.0]}

    def vectors(ids: Any) -> dict[str, Any]:
        import numpy as np

        return {cube_id: np.array(near[cube_id], dtype=np.float16) for cube_id in ids}

    scheduler = MemScheduler(Fixed(cubes, [1.0, 0.9, 0.8]), top_k=2, token_budget=9, vectors=vectors)
    assert {cube.text for cube in scheduler.choose("maya", "q", words)} == {"rain", "sun"}


def test_the_form_and_its_reason_are_told() -> None:
    (cube,) = cubes_of("tea")
    (plain,) = planned([cube], 1, 1).chosen
    assert plain.form == "text" and "splicing is off" in plain.why
    (spliced,) = planned([cube], 1, 1, forms=lambda cubes: [Shape("kv", "hot") for _ in cubes]).chosen
    assert spliced.form == "kv" and "as kv: hot" in spliced.why


def test_caches_of_pipelines_enter_no_prompt() -> None:
    (cube,) = cubes_of("half-made")
    cached = MemCube(msgspec.structs.replace(cube.header, namespace="pipeline"), cube.payload)
    plan = planned([cached], 1, 1)
    assert plan.chosen == [] and reasons(plan) == {cube.id: "cached for a pipeline"}


def test_memories_of_the_turn_before_stay_in_front_while_there_is_room() -> None:
    old, new = cubes_of("a a", "b b", "c c"), cubes_of("d", "e")
    before = [old[2], old[0], old[1]]
    plan = planned([*new, *old], 2, 100, [1.0, 0.9, 0.2, 0.2, 0.2], before=before)
    assert plan.cubes == [old[2], old[0], *new]  # KEPT times two, and the first ones first
    assert {choice.why.partition(";")[0] for choice in plan.chosen[:2]} == {"kept from the turn before"}
    assert KEPT == 2
    tight = planned([*new, *old], 2, 4, [1.0, 0.9, 0.2, 0.2, 0.2], before=before)
    assert tight.cubes == [old[2], *new]


def test_memories_of_the_turn_before_stay_though_no_search_finds_them() -> None:
    (gone,), (found,) = cubes_of("first"), cubes_of("second")
    assert planned([found], 2, 9, before=[gone]).cubes == [gone, found]


def test_a_turn_that_nothing_matches_goes_on_with_what_it_has() -> None:
    (old,), recent = cubes_of("a"), cubes_of("b", "c")
    assert planned(recent, 2, 9, [0.0, 0.0]).cubes == recent
    assert planned(recent, 2, 9, [0.0, 0.0], before=[old]).cubes == [old]


def test_a_time_in_the_question_leads_but_does_not_empty_the_prompt() -> None:
    (cube,) = cubes_of("tea")
    call = _Call("maya", "q", window=TimeWindow("2020-01-01", "2020-01-02"))
    for old in (False, True):
        scheduler = MemScheduler(Fixed([cube], old=old), top_k=1, token_budget=9)
        assert scheduler.plan(call, words).cubes == [cube]


class _Call(msgspec.Struct, frozen=True):
    caller: str
    query: str
    owners: tuple[str, ...] = ("maya",)
    types: tuple[Any, ...] = ()
    window: TimeWindow | None = None


def test_uses_are_asked_for_where_the_policy_reads_them() -> None:
    cubes, asked = cubes_of("tea", "coffee"), []

    def uses(ids: Any) -> dict[str, Uses]:
        asked.append([*ids])
        return {cubes[1].id: Uses(5, 5.0, time.time())}

    scheduler = MemScheduler(Fixed(cubes), top_k=1, token_budget=9, uses=uses)
    assert scheduler.plan(Asking("maya", "q"), words).cubes == [cubes[0]] and asked == []
    for policy in ("frequency", "lru"):
        assert scheduler.plan(Asking("maya", "q"), words, policy=policy).cubes == [cubes[1]]
    assert len(asked) == 2


@pytest.mark.parametrize(("top_k", "token_budget"), [(0, 5), (5, 0), (-1, 5)])
def test_useless_settings_stop_the_start(top_k: int, token_budget: int) -> None:
    with pytest.raises(StartError):
        MemScheduler(Fixed([]), top_k=top_k, token_budget=token_budget)


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="'mru' is unknown; there are semantic, lru, label, frequency, priority"):
        planned([], 1, 1, policy="mru")


def test_a_thousand_memories_are_planned_in_reasonable_time() -> None:
    cubes = cubes_of(*(f"memory number {n} of tea and {n % 7} cups" for n in range(1064)))
    began = time.thread_time()
    assert len(planned(cubes, 1000, 10**6).chosen) == 1000
    assert time.thread_time() - began < 5


def test_with_a_real_search(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "memory") as vault:
        vault.add(cubes_of("I drink green tea", "My dog is called Rex", "Tea makes me calm"), actor="maya")
        scheduler = MemScheduler(MemOperator(vault), top_k=5, token_budget=50)
        assert {cube.text for cube in scheduler.choose("maya", "Which tea?", words)} == {
            "I drink green tea",
            "Tea makes me calm",
        }
        assert scheduler.choose("bo", "Which tea?", words) == []


def test_what_the_adapter_knows_takes_a_place_and_no_room() -> None:
    cubes = cubes_of("one two three", "four five six", "seven eight nine", "ten")
    known = [f"{cubes[0].id}@1", f"{cubes[1].id}@2"]
    plan = planned(cubes, 3, 6, known=known)
    assert plan.learned == [cubes[0]], "of the second an older version is"
    assert {*(cube.id for cube in plan.cubes)} == {cubes[1].id, cubes[2].id}
    (learned,) = [choice for choice in plan.chosen if choice.form == "adapter"]
    assert learned.tokens == 0 and learned.why.endswith("as adapter: the adapter that answers has learned it")
    assert (plan.tokens, len(plan.chosen)) == (6, 3)
    assert [left.cube_id for left in plan.left_out] == [cubes[3].id]
    assert planned(cubes, 3, 6).learned == []


def test_what_the_adapter_has_learned_meanwhile_leaves_the_conversation() -> None:
    cubes = cubes_of("one", "two", "three")
    before = [cubes[2], cubes[0]]
    assert planned(cubes, 3, 9, before=before).cubes == [cubes[2], cubes[0], cubes[1]]
    assert planned(cubes, 3, 9, before=before, known=[f"{cubes[2].id}@1"]).cubes == [cubes[0], cubes[1]]
