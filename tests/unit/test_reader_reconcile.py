"""Duplicates, contradictions, and what leaves each other alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import MemCube
from memos_vllm.reader import Action, Add, Draft, RuleReader, Skip, Spoken, Update, reconcile
from tests.unit.test_reader_rules import ANY_MESSAGE

AT = datetime(2026, 3, 12, 15, 30, tzinfo=UTC)


def drafts(*texts: str) -> list[Draft]:
    return RuleReader().drafts([Spoken("user", text) for text in texts], AT)


def cube(text: str, *, happened: str = "2026-01-05", state: str = "generated") -> MemCube:
    made = MemCube.plaintext(text, owner="maya")
    header = msgspec.structs.replace(made.header, happened=happened, state=state)
    return MemCube(header, made.payload)


def one(new: str, *known: MemCube, at: datetime = AT) -> Action:
    (action,) = reconcile(drafts(new), known, at=at)
    return action


CONTRADICTIONS = [
    ("My favourite tea is oolong.", "Actually, my favorite tea is sencha now."),
    ("My favourite tea is oolong.", "Sencha is my favourite tea."),
    ("My favourite tea is oolong.", "I changed my favourite tea from oolong to sencha."),
    ("My favourite tea is oolong.", "I don't like oolong any more."),
    ("My favourite tea is oolong.", "I switched from oolong to sencha."),
    ("I live in Lisbon.", "I just moved to Porto."),
    ("I live in Lisbon.", "I'm living in Porto now."),
    ("I work at Acme.", "I joined Globex last week."),
    ("I love cilantro.", "I hate cilantro."),
    ("I hate cilantro.", "I like cilantro now."),
    ("I'm vegetarian.", "I'm no longer vegetarian."),
    ("I am vegetarian.", "I've become vegan."),
    ("I'm single.", "I got married."),
    ("I am 34 years old.", "I'm 35 now."),
    ("I have two cats.", "I have three cats now."),
    ("I smoke.", "I quit smoking."),
    ("I eat meat.", "I don't eat meat any more."),
    ("I prefer tea over coffee.", "I prefer coffee to tea now."),
    ("I prefer the window seat.", "I prefer an aisle seat."),
    ("Please call me Maya.", "Please call me May."),
    ("My doctor is Dr. Silva.", "My doctor is Dr. Jones."),
    ("I work as a nurse.", "I work as a teacher now."),
    ("I switched from vim to emacs.", "I switched from emacs to helix."),
    ("My favourite tea is oolong. It tastes of flowers.", "My favourite tea is sencha."),
    ("i live in lisbon", "I moved to Porto."),
    ("I'm married to Tom.", "I got divorced."),
    ("My sister lives in Rome.", "My sister moved to Berlin."),
    ("Please always answer in French.", "Please answer in German from now on."),
    ("My email is maya@old.example.", "My new email is maya@new.example."),
]


@pytest.mark.parametrize(("old", "new"), CONTRADICTIONS)
def test_a_contradiction_is_a_new_version(old: str, new: str) -> None:
    known = cube(old)
    action = one(new, cube("I have a dog."), known)
    assert isinstance(action, Update), action
    assert (action.id, action.expect, action.text) == (known.id, 1, action.draft.text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("My favourite tea is oolong.", "my favorite tea is oolong"),
        ("My favourite tea is oolong.", "Oolong is my favourite tea."),
        ("I live in Lisbon.", "I'm living in Lisbon now."),
        ("I love hiking.", "I really love hiking!"),
        ("I have a cat.", "I have a cat."),
        ("The deploy server is at 10.0.0.5.", "The deploy server is at 10.0.0.5"),
        ("Ich wohne in Lissabon und trinke Tee.", "Ich wohne in Lissabon und trinke Tee."),
    ],
)
def test_what_is_known_is_left_alone(old: str, new: str) -> None:
    known = cube(old, happened="2026-03-12")
    action = one(new, known)
    assert isinstance(action, Skip) and (action.id, action.why) == (known.id, "known")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("My favourite tea is oolong.", "My favourite city is Lisbon."),
        ("I live in Lisbon.", "My sister lives in Porto."),
        ("I live in Lisbon.", "I used to live in Rome."),
        ("I live in Lisbon.", "I don't live in Rome."),
        ("My sister is a doctor.", "My sister is in Rome."),
        ("I like tea.", "I like coffee."),
        ("I don't like oolong.", "I like sencha."),
        ("I have a cat named Tilda.", "I have a cat named Milo."),
        ("I went to the gym.", "I went to the cinema."),
        ("My favourite tea is oolong.", "Everybody says that tea is healthy."),
        ("My name is Maya.", "Please call me May."),
        ("My first name is Maya.", "My last name is Silva."),
        ("I switched from vim to emacs.", "I switched from coffee to tea."),
        ("Lisbon is my favourite.", "Oolong is my favourite."),
        ("My favourite tea is oolong.", "My favourite tea is out of stock."),
        ("Please always answer in French.", "Always answer in short sentences."),
        ("Please always answer in French.", "Please always answer in JSON."),
        ("I live in Lisbon.", "I live in a small flat on the third floor."),
        ("I live in Lisbon.", "I live in fear of spiders."),
        ("I live in Lisbon.", "I'm moving to Porto in September."),
        ("My phone is 123456.", "My phone is broken."),
        ("My phone is 123456.", "My phone is broken now."),
        ("My phone is 123456.", "My phone is 5 years old."),
        ("My doctor is Dr. Silva.", "My doctor is on holiday in Rome."),
        ("My password is hunter2 for the wifi.", "My password is expired."),
        ("My wife is Anna.", "My wife is ill."),
        ("I'm married.", "I'm engaged in a legal dispute with my landlord."),
        ("I'm married.", "I'm single-handedly raising two kids."),
        ("I'm vegetarian.", "I'm vegan-curious."),
        ("I work at Acme.", "I work for a charity on weekends."),
        ("I work at Acme.", "I work at Globex on weekends."),
        ("I work as a nurse.", "I work as a volunteer on Sundays."),
        ("I live in Lisbon. It is beautiful there and my sister's wedding will be there in May.", "I moved to Porto."),
    ],
)
def test_what_only_looks_alike_is_a_memory_of_its_own(old: str, new: str) -> None:
    assert isinstance(one(new, cube(old)), Add)


def test_the_same_on_another_day_is_another_episode() -> None:
    earlier = cube("I went to the gym yesterday.", happened="2026-03-01")
    same = cube("I went to the gym yesterday.", happened="2026-03-11")
    assert isinstance(one("I went to the gym yesterday.", earlier), Add)
    assert isinstance(one("I went to the gym yesterday.", earlier, same), Skip)


def test_only_the_contradicted_statement_of_a_memory_is_replaced() -> None:
    known = cube("Hi! I live in Lisbon. My favourite tea is oolong. I have a cat.")
    action = one("My favourite tea is sencha!", known)
    assert isinstance(action, Update)
    assert action.text == "Hi! I live in Lisbon. My favourite tea is sencha! I have a cat."


def test_statements_of_one_message_are_compared_too() -> None:
    first, second, third = reconcile(
        drafts("My favourite tea is oolong. I live in Rome. Actually, my favourite tea is sencha."), (), at=AT
    )
    assert isinstance(first, Add) and isinstance(second, Add)
    assert isinstance(third, Update) and (third.id, third.expect) == (first.id, 1)
    again = reconcile(drafts("I have a dog. I have a dog."), (), at=AT)
    assert [type(action) for action in again] == [Add, Skip]


def test_an_old_message_does_not_replace_what_is_known_from_later() -> None:
    known = cube("My favourite tea is sencha.", happened="2026-03-12")
    action = one("My favourite tea is oolong.", known, at=AT - timedelta(days=30))
    assert isinstance(action, Skip) and action.why == "outdated"


def test_a_plan_is_no_news_of_what_is() -> None:
    plan = cube("I'm moving to Porto in September.", happened="2026-09-01")
    home = cube("I live in Lisbon.", happened="2026-03-01")
    assert isinstance(one("I live in Lisbon.", plan), Add)
    assert isinstance(one("I live in Rome.", plan, home), Update)


def test_the_date_of_something_that_is_is_when_it_was_said() -> None:
    (draft,) = drafts("I live in Lisbon since 2020.")
    assert draft.happened == "2026-03-12"
    known = cube(draft.text, happened=draft.happened)
    assert isinstance(one("I live in Rome.", known, at=AT - timedelta(days=1000)), Skip)


def test_a_memory_of_several_statements_keeps_its_date() -> None:
    action = one("My favourite tea is sencha!", cube("I went to Rome in May. My favourite tea is oolong."))
    assert isinstance(action, Update) and action.happened == ""
    action = one("My favourite tea is sencha!", cube("My favourite tea is oolong."))
    assert isinstance(action, Update) and action.happened == "2026-03-12"


@pytest.mark.parametrize("state", ["frozen", "archived", "merged", "expired"])
def test_what_cannot_change_is_left_alone(state: str) -> None:
    assert isinstance(one("My favourite tea is sencha.", cube("My favourite tea is oolong.", state=state)), Add)


@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_MESSAGE, max_size=3), st.lists(ANY_MESSAGE.filter(str.strip), max_size=3))
def test_any_messages_meet_any_memories(new: list[str], known: list[str]) -> None:
    cubes = [cube(text) for text in known if text.isprintable()]
    found = drafts(*new)
    actions = reconcile(found, cubes, at=AT)
    assert [action.draft for action in actions] == found
    versions = {held.id: 1 for held in cubes}
    for action in actions:
        if isinstance(action, Add):
            assert versions.setdefault(action.id, 1) == 1
        else:
            assert action.id in versions
        if isinstance(action, Update):
            assert action.draft.text in action.text
            assert action.expect == versions[action.id]
            versions[action.id] += 1


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_MESSAGE, max_size=4))
def test_reading_the_same_again_adds_nothing(texts: list[str]) -> None:
    found = drafts(*texts)
    held: dict[str, MemCube] = {}
    for _ in range(2):
        actions = reconcile(found, list(held.values()), at=AT)
        for action in actions:
            if isinstance(action, Skip):
                continue
            text = action.text if isinstance(action, Update) else action.draft.text
            made = MemCube.plaintext(text, owner="maya", semantic_type=action.draft.semantic_type)
            version = action.expect + 1 if isinstance(action, Update) else 1
            header = msgspec.structs.replace(made.header, id=action.id, happened=action.draft.happened, version=version)
            held[action.id] = MemCube(header, made.payload)
    assert not any(isinstance(action, Add) for action in reconcile(found, list(held.values()), at=AT))
