"""The order of memories over the turns of a conversation: vLLM's prefix cache reuses what does not move."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import MemCube
from memos_vllm.retrieval import Hit
from memos_vllm.scheduler import MemScheduler
from memos_vllm.scheduler.order import Turns, placed
from memos_vllm.scheduler.plan import Asking
from memos_vllm.server.turns import turn_keys

CUBES = [MemCube.plaintext(f"memory {n} {'tea ' * (n % 4)}", owner="maya") for n in range(12)]
ids = st.permutations(CUBES).flatmap(lambda cubes: st.integers(0, len(cubes)).map(lambda count: cubes[:count]))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def check(before: Sequence[str], after: Sequence[str]) -> None:
    """The common prefix of two turns ends where the first cube left, or at the end of the turn before."""
    left = [place for place, cube_id in enumerate(before) if cube_id not in after]
    assert common(before, after) == min(left, default=len(before))
    stayed = [cube_id for cube_id in before if cube_id in after]
    new = [cube_id for cube_id in after if cube_id not in before]
    assert [*after] == stayed + sorted(new)


@settings(deadline=None)
@given(ids, ids)
def test_the_prefix_breaks_where_a_cube_leaves_and_nowhere_else(before: list[MemCube], chosen: list[MemCube]) -> None:
    places = {cube.id: place for place, cube in enumerate(before)}
    check([cube.id for cube in before], [cube.id for cube in placed(chosen, places)])


class Shuffled:
    """An operator that finds these cubes, best first."""

    def __init__(self) -> None:
        self.found: list[MemCube] = []

    def search(self, principals: Any, query: str, *, top_k: int, **options: Any) -> list[Hit]:
        return [Hit(cube, 1 / (rank + 1)) for rank, cube in enumerate(self.found[:top_k])]

    def sentence_scores(self, query: str, text: str) -> list[tuple[int, int, float]]:
        return []


@settings(deadline=None)
@given(st.lists(ids, min_size=1, max_size=6), st.integers(1, 5), st.integers(2, 40), st.randoms(use_true_random=False))
def test_so_it_is_in_the_plans_of_a_conversation(
    turns: list[list[MemCube]], top_k: int, budget: int, random: Any
) -> None:
    """Searches find other cubes in each turn, and now and then one is deleted between two."""
    operator = Shuffled()
    scheduler = MemScheduler(operator, top_k=top_k, token_budget=budget)
    before: list[MemCube] = []
    for found in turns:
        gone = {cube.id for cube in random.sample(CUBES, k=random.randrange(3))}
        operator.found = [cube for cube in found if cube.id not in gone]
        usable = [cube for cube in before if cube.id not in gone]
        after = scheduler.plan(Asking("maya", "q"), lambda cube: len(cube.text.split()), before=usable).cubes
        check([cube.id for cube in before], [cube.id for cube in after])
        assert sum(len(cube.text.split()) for cube in after) <= budget
        before = after


Message = dict[str, Any]
said = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "tool"]), st.text(max_size=5)), max_size=8)


@settings(deadline=None)
@given(said, said)
def test_the_keys_of_a_conversation_begin_with_those_of_the_turn_before(one: Any, more: Any) -> None:
    first = [{"role": role, "content": text} for role, text in one]
    longer = first + [{"role": role, "content": text} for role, text in more]
    keys, continued = turn_keys("maya", first), turn_keys("maya", longer)
    assert continued[: len(keys)] == keys
    assert len(keys) == sum(message["role"] == "user" for message in first)
    assert not set(keys) & set(turn_keys("noor", first))


def test_keys_tell_conversations_apart_and_overlook_the_system() -> None:
    asked: list[Message] = [{"role": "user", "content": "tea?"}]
    dated: list[Message] = [{"role": "system", "content": "It is noon."}, *asked]
    parts: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "tea?"}]}]
    assert turn_keys("maya", asked) == turn_keys("maya", dated) == turn_keys("maya", parts)
    assert turn_keys("maya", asked) != turn_keys("maya", [{"role": "user", "content": "tea"}])
    joined: list[Message] = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert turn_keys("maya", joined)[-1] != turn_keys("maya", [{"role": "user", "content": ["a", "b"]}])[-1]


def test_turns_are_found_by_the_newest_key_that_is_known() -> None:
    turns = Turns(max_turns=2)
    turns.note(b"1", "maya", ["x"])
    turns.note(b"2", "maya", ["x", "y"])
    assert turns.before([b"1", b"2", b"3"]) == ("x", "y")
    assert turns.before([b"1", b"9"]) == ("x",)
    assert turns.before([b"9"]) == turns.before([]) == ()
    turns.note(b"3", "noor", ["z"])  # what rested longest goes
    assert turns.before([b"2"]) == () and turns.before([b"1"]) == ("x",)
    turns.forget("maya")
    assert turns.before([b"1"]) == () and turns.before([b"3"]) == ("z",)
