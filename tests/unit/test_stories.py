"""The recall tasks: what is asked is told where its kind says, and cannot be guessed without the person."""

from __future__ import annotations

import random

import pytest

from memos_vllm.bench.people import ATTRIBUTES, HARD, NAMES, held_out
from memos_vllm.bench.quality_cases import MOST_MEMORIES, PROMPT_ROOM, make_cases
from memos_vllm.bench.stories import KINDS, NEEDS_TWO, Kind, Story, make_story


def told(story: Story, words: str) -> list[int]:
    """Numbers of the memories that hold the words."""
    texts = [memory.text(random.Random(0), 0) for memory in story.memories]
    return [number for number, text in enumerate(texts) if words in text]


def stories(kind: Kind, count: int = 60) -> list[Story]:
    rng = random.Random(KINDS.index(kind))
    return [make_story(rng, rng.randint(2, 6), [kind], held=True, mix=HARD) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_of_another_value_is_told_and_asked_about(kind: Kind) -> None:
    for story in stories(kind):
        asked, rival = story.asks
        assert asked.kind == kind
        assert asked.value not in rival.value
        assert rival.value not in asked.value
        assert told(story, asked.value)
        assert told(story, rival.value)
        assert asked.is_right(asked.answer)
        assert not asked.is_right(rival.answer)


def test_two_hops_are_told_in_two_memories() -> None:
    for story in stories("two-hop"):
        link, fact = story.asks[0].answer.split(". ", 1)
        (first,) = told(story, f"{link}.")
        person = fact.partition("'s ")[0]
        assert link.endswith(f" is {person}")
        assert [place for place in told(story, story.asks[0].value) if place != first]


def test_a_pronoun_stands_behind_the_seam_after_its_person() -> None:
    for story in stories("pronoun"):
        ask = story.asks[0]
        place = next(n for n, memory in enumerate(story.memories) if any(f"is {ask.value}." in s for s in memory.head))
        person = ask.answer.partition("'s ")[0]
        assert story.memories[place].head[-1].startswith("Their ")
        assert person in story.memories[place - 1].tail[0]
        assert told(story, person) == [place - 1]
        assert not any(name in sentence for name in held_out(NAMES)[True] for sentence in story.memories[place].head)


def test_an_update_comes_after_what_it_changes() -> None:
    for story in stories("update"):
        ask = story.asks[0]
        new = told(story, f"is now {ask.value}.")
        old = [place for place in told(story, ask.wrong) if place not in new]
        assert old
        assert min(old) < new[0]
        assert not ask.is_right(f"It was {ask.wrong} and is {ask.value}.")


def test_what_needs_two_memories_is_refused_in_one() -> None:
    for kind in NEEDS_TWO:
        with pytest.raises(ValueError, match=f"no room for a task of kind {kind}"):
            Story(random.Random(0), 1, held=True, mix=HARD).add(kind)
    assert [ask.kind for ask in make_story(random.Random(0), 1, list(NEEDS_TWO), True, HARD).asks] == ["inside"] * 6


def test_held_out_people_and_values_are_others() -> None:
    seen, unseen = held_out(NAMES)
    assert not set(seen) & set(unseen)
    assert sorted(seen + unseen) == sorted(NAMES)
    assert all(min(map(len, held_out(attribute.values))) > 0 for attribute in ATTRIBUTES)


def test_cases_have_the_sizes_and_kinds_that_are_wanted() -> None:
    def count(text: str) -> int:
        return len(text.split())

    cases = make_cases(random.Random(5), (64, 512, 2048), each=6, positions=8192, count=count)
    assert [case.number for case in cases] == list(range(len(cases)))
    for size in (64, 512, 2048):
        for kind in KINDS:
            here = [case for case in cases if (case.size, case.ask.kind) == (size, kind)]
            assert len(here) == 6
            for case in here:
                assert (1 if kind == "inside" else 2) <= len(case.texts) <= min(MOST_MEMORIES, 7936 // size)
                assert all(size - 20 < count(text) + 1 <= max(size, 70) for text in case.texts)
                assert sum(map(count, case.texts)) + PROMPT_ROOM <= 8192
    again = make_cases(random.Random(5), (64, 512, 2048), each=6, positions=8192, count=count)
    assert again == cases
    assert len({len(case.texts) for case in cases}) > 3
