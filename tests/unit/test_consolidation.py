"""What the scheduler proposes to learn, against a slow reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.cube import MemCube
from memos_vllm.scheduler import consolidation
from memos_vllm.scheduler.clock import DAY, seconds_of
from memos_vllm.scheduler.consolidation import (
    LEAST_SAVED,
    LEAST_USES,
    MOST,
    OFTEN,
    PAGE,
    STABLE_DAYS,
    STAYS,
    Candidate,
    Look,
    Proposal,
    lasts,
    look,
    rate_of,
)
from memos_vllm.vault import Uses, Vault

NOW = 1_800_000_000.0


def heat_for(rate: float) -> float:
    """The decayed uses that so many a day settle at."""
    return rate / math.log(2)


def candidate(number: int, **fields: object) -> Candidate:
    given = {
        "id": f"{number:032x}",
        "version": 1,
        "tokens": 20,
        "changed": NOW - 9 * DAY,
        "uses": Uses(50, heat_for(4.0), NOW),
    }
    return Candidate(**(given | fields))  # type: ignore[arg-type]


def proposed(candidates: Iterable[Candidate], made_of: Sequence[str] = ()) -> Proposal:
    looked = Look(NOW, made_of)
    for one in candidates:
        looked.add(one)
    return looked.proposal()


candidates = st.lists(
    st.builds(
        Candidate,
        id=st.integers(0, 10**6).map(lambda number: f"{number:032x}"),
        version=st.integers(1, 3),
        tokens=st.integers(0, 200),
        changed=st.floats(NOW - 30 * DAY, NOW + DAY),
        uses=st.builds(Uses, st.integers(0, 20), st.floats(0, 30), st.floats(NOW - 5 * DAY, NOW)),
        lasting=st.booleans(),
        known=st.booleans(),
    ),
    max_size=30,
    unique_by=lambda one: one.id,
)


@given(candidates, st.integers(1, 8), st.data())
def test_it_is_what_a_slow_reference_proposes(found: list[Candidate], most: int, data: st.DataObject) -> None:
    sources = [one.source for one in found] + ["f" * 32 + "@1"]
    made_of = data.draw(st.lists(st.sampled_from(sources), unique=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consolidation, "MOST", most)
        proposal = proposed(found, made_of)
    rates = {one.id: one.uses.heat * 0.5 ** ((NOW - one.uses.at) / DAY) * math.log(2) for one in found}
    worth = [
        one
        for one in found
        if one.lasting
        and one.uses.count >= LEAST_USES
        and NOW - one.changed >= STABLE_DAYS * DAY
        and rates[one.id] >= (OFTEN * STAYS if one.known else OFTEN)
    ]
    worth.sort(key=lambda one: (rates[one.id] * one.tokens, one.id), reverse=True)
    best = sorted(worth[:most], key=lambda one: one.id)
    assert [learn.candidate for learn in proposal.learn] == best
    busiest = max(rates.values(), default=0.0)
    a_day = sum(rates[one.id] * one.tokens for one in best)
    fresh = sum(rates[one.id] * one.tokens for one in best if not one.known)
    assert proposal.saved_a_day == pytest.approx(a_day)
    assert proposal.saved == pytest.approx(a_day / busiest if busiest else 0.0)
    assert proposal.gained == pytest.approx(fresh / busiest if busiest else 0.0)
    assert proposal.saved <= sum(one.tokens for one in best) + 1e-6, "a prompt holds a memory once"
    there = {one.source for one in found if one.lasting}
    assert {*proposal.lost} == {*made_of} - there
    pays = proposal.gained >= LEAST_SAVED or (proposal.lost and proposal.saved >= LEAST_SAVED)
    assert proposal.worth == bool(pays)


@given(candidates)
def test_the_order_of_looking_does_not_matter(found: list[Candidate]) -> None:
    forward, backward = proposed(found), proposed(reversed(found))
    assert forward.sources == backward.sources
    assert forward.saved == pytest.approx(backward.saved)


@pytest.mark.parametrize(
    "unfit",
    [
        {"lasting": False},
        {"changed": NOW - STABLE_DAYS * DAY + 60},
        {"uses": Uses(LEAST_USES - 1, heat_for(4.0), NOW)},
        {"uses": Uses(50, heat_for(0.9), NOW)},
        {"uses": Uses(50, heat_for(4.0), NOW - 3 * DAY)},
    ],
)
def test_what_is_new_seldom_used_or_passing_is_not_learned(unfit: dict[str, object]) -> None:
    assert proposed([candidate(1, **unfit)]).learn == ()
    assert proposed([candidate(1)]).sources == (f"{1:032x}@1",)


def test_what_is_known_stays_for_less_and_says_so() -> None:
    seldom = Uses(50, heat_for(0.5), NOW)
    assert proposed([candidate(1, uses=seldom)]).learn == ()
    (learn,) = proposed([candidate(1, uses=seldom, known=True)]).learn
    assert learn.why == "used 0.5 times a day, unchanged for 9 days; known already"


def test_a_training_pays_by_what_is_new_or_was_lost() -> None:
    three = [candidate(number) for number in range(3)]
    assert proposed(three).saved == pytest.approx(60) and proposed(three).worth
    assert not proposed(three[:1]).worth
    known = [candidate(number, known=True) for number in range(3)]
    made_of = [one.source for one in known]
    assert not proposed(known, made_of).worth
    assert proposed(known, [*made_of, "0" * 32 + "@7"]).worth, "that version is no more"
    busy = [*three, candidate(9, lasting=False, uses=Uses(500, heat_for(8.0), NOW))]
    assert proposed(busy).saved == pytest.approx(30), "every other prompt had none of them"


def test_no_more_are_held_than_are_learned() -> None:
    looked = Look(NOW)
    for number in range(MOST + 50):
        looked.add(candidate(number, tokens=number))
    learn = looked.proposal().learn
    assert len(learn) == MOST and min(one.candidate.tokens for one in learn) == 50


def test_rates_are_those_of_steady_use() -> None:
    uses = Uses()
    for hour in range(24 * 20):
        uses = uses.more(1, NOW + hour * 3600.0)
    assert rate_of(uses, NOW + 24 * 20 * 3600.0) == pytest.approx(24, rel=0.02)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def test_only_lasting_texts_in_use_are_looked_at_as_such(vault: Vault) -> None:
    cases = [
        MemCube.plaintext("I like tea.", owner="maya"),
        MemCube.plaintext("I am on call today.", owner="maya", expires="2099-01-01"),
        MemCube.plaintext("I have a stiff knee.", owner="maya"),
    ]
    plain, passing, delicate = vault.add(cases, actor="maya")
    assert not lasts(plain), "it was never used"
    vault.transition_all([plain.id, passing.id, delicate.id], "activated", actor="maya")
    assert [lasts(vault.get(cube.id)) for cube in (plain, passing, delicate)] == [True, False, True]
    assert not lasts(vault.edit(delicate.id, actor="maya", sensitivity=["health"]))
    vault.transition(plain.id, "archived", actor="maya")
    assert not lasts(vault.get(plain.id))


def test_an_owners_memories_are_looked_at_page_by_page(vault: Vault) -> None:
    made = vault.add([MemCube.plaintext(f"Fact {n}.", owner="maya") for n in range(PAGE + 6)], actor="maya")
    vault.add([MemCube.plaintext("Tom's.", owner="tom")], actor="tom")
    ids = [cube.id for cube in made]
    vault.transition_all(ids, "activated", actor="maya")
    later = 9 * DAY + max(map(_changed, map(vault.get, ids)))
    vault.add_uses(dict.fromkeys(ids[:5], 10), later)
    counted: list[str] = []

    def tokens(cube: MemCube) -> int:
        counted.append(cube.id)
        return 7

    made_of = [f"{ids[0]}@1", f"{ids[1]}@2"]
    steps = look(vault, "maya", later, uses=vault.uses_of, count_tokens=tokens, made_of=made_of, known=made_of)
    assert len([*islice(steps, 1)]) == 1 and counted == ids[:5], "the first page"
    *_, looked = steps
    proposal = looked.proposal()
    assert [one.candidate.id for one in proposal.learn] == ids[:5]
    assert [one.candidate.known for one in proposal.learn] == [True, False, False, False, False]
    assert proposal.lost == (made_of[1],)
    assert proposal.saved == pytest.approx(35) and proposal.worth


def _changed(cube: MemCube) -> float:
    return seconds_of(cube.header.updated)
