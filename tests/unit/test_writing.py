"""Memories out of conversations: a real vault, the real search, and turns in the background."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import Grant, MemCube
from memos_vllm.errors import BadInput, Conflict, Forgotten, VaultUnavailable
from memos_vllm.reader import Draft, RuleReader, Spoken
from memos_vllm.retrieval import MemOperator
from memos_vllm.server import metrics, writing
from memos_vllm.server.writing import MemoryForm, MemoryWriter, Turn, TurnWriter, Written, form_at
from memos_vllm.vault import Vault
from tests.unit.writing_cases import Held, hold, say, told


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with Vault.open(tmp_path / "memory") as vault:
        yield Held(vault, MemOperator(vault))


def test_a_preference_over_three_sessions(held: Held) -> None:
    (first,) = say(held, "My favourite tea is oolong.", at="2026-01-05", source="session-1")
    say(held, "I live in Lisbon. I went to the market yesterday.", at="2026-01-06", source="session-1")
    (second,) = say(held, "Actually, my favourite tea is sencha now.", at="2026-02-10", source="session-2")
    assert (first.event, second.event, second.cube.id) == ("ADD", "UPDATE", first.cube.id)

    best = held.operator.search("maya", "Which tea should I brew?", top_k=1)[0].cube
    assert (best.id, best.text, best.version) == (first.cube.id, "my favourite tea is sencha now.", 2)
    assert best.header.happened == "2026-02-10"
    assert told(held).count("My favourite tea is oolong.") == 0

    events = held.vault.history(first.cube.id)
    assert [(event.operation, event.old_text, event.new_text) for event in events] == [
        ("add", None, "My favourite tea is oolong."),
        ("update", "My favourite tea is oolong.", "my favourite tea is sencha now."),
    ]
    held.vault.rollback(first.cube.id, 1, actor="maya")
    best = held.operator.search("maya", "Which tea should I brew?", top_k=1)[0].cube
    assert (best.id, best.text, best.version) == (first.cube.id, "My favourite tea is oolong.", 3)


def test_a_memory_knows_where_it_comes_from(held: Held) -> None:
    home, gym = say(held, "I live in Lisbon. I went to the gym yesterday.", at="2026-03-12T10:00:00Z", source="run-7")
    assert (home.cube.header.semantic_type, gym.cube.header.semantic_type) == ("fact", "episode")
    assert (home.cube.header.happened, gym.cube.header.happened) == ("2026-03-12", "2026-03-11")
    assert {cube.header.source for cube in held.vault.list("maya")} == {"run-7"}
    assert (home.cube.header.fingerprint, home.cube.header.origin) == ("home", "inference_extraction")
    assert home.cube.id < gym.cube.id


def test_a_contradiction_that_shares_no_word_is_found_by_what_it_is_about(held: Held) -> None:
    say(held, *(f"I went to place number {number} on foot." for number in range(30)))
    (old,) = say(held, "I live in Lisbon.")
    say(held, *(f"I saw the film number {number} there." for number in range(30)))
    (new,) = say(held, "I just moved to Porto!")
    assert (new.event, new.cube.id) == ("UPDATE", old.cube.id)


def test_what_is_known_is_not_stored_again(held: Held) -> None:
    first = say(held, "My favourite tea is oolong. I live in Lisbon.")
    again = say(held, "I live in Lisbon, and my favourite tea is oolong!")
    assert [one.event for one in again] == ["NONE", "NONE"]
    assert {one.cube.id for one in again} == {one.cube.id for one in first}
    assert len(told(held)) == 2


DELICATE = MemoryForm(
    tags=("work",), sensitivity=("health",), access=(Grant("tom"),), expires="2999-01-01", source="session-2"
)


def header(held: Held, cube_id: str) -> tuple[object, ...]:
    told = held.vault.get(cube_id).header
    return told.tags, told.sensitivity, told.access, told.expires


def tell(held: Held, text: str, form: MemoryForm, name: str = "") -> list[Written]:
    return MemoryWriter(held, RuleReader()).remember("maya", [Spoken("user", text, name)], form)


def test_a_correction_leaves_a_memory_as_private_as_it_was(held: Held) -> None:
    old = hold(held, tags=("home",), access=["tom"], expires="2999-01-01", sensitivity=("health", "work"))
    (new,) = tell(held, "I live in Porto.", DELICATE)
    assert (new.event, new.cube.id, new.cube.version) == ("UPDATE", old.id, 2)
    assert new.cube == held.vault.get(old.id)
    assert header(held, old.id) == (("home", "work"), ("health", "work"), (Grant("tom"),), "2999-01-01")
    assert held.vault.check() == []


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, MemoryForm(sensitivity=("health",))),
        ({}, MemoryForm(expires="2999-01-01")),
        ({}, MemoryForm(namespace="shared")),
        ({}, MemoryForm(metadata={"agent_id": "b"})),
        ({"access": ["tom"]}, MemoryForm()),
        ({"expires": "2999-01-01"}, MemoryForm()),
        ({"namespace": "shared"}, MemoryForm()),
        ({"metadata": {"agent_id": "a"}}, MemoryForm(metadata={"agent_id": "b"})),
        ({"metadata": {"run_id": "a"}}, MemoryForm()),
        ({"metadata": {"speaker": "Caroline"}}, MemoryForm()),
    ],
)
def test_what_differs_in_who_reads_it_how_long_and_where_it_belongs_is_not_overwritten(
    held: Held, fields: dict[str, Any], form: MemoryForm
) -> None:
    old = hold(held, **fields)
    (new,) = tell(held, "I live in Porto.", form)
    assert (new.event, held.vault.get(old.id)) == ("ADD", old)
    assert [one.event for one in tell(held, "I live in Porto.", form)] == ["NONE"]
    (newer,) = tell(held, "I live in Rome.", form)
    assert (newer.event, newer.cube.id) == ("UPDATE", new.cube.id)


def test_two_speakers_of_one_request_do_not_speak_for_each_other(held: Held) -> None:
    spoken = [Spoken("user", "I live in Lisbon.", "Ana"), Spoken("user", "I live in Porto.", "Bea")]
    written = MemoryWriter(held, RuleReader()).remember("maya", spoken, MemoryForm())
    assert [(one.event, one.cube.header.metadata) for one in written] == [
        ("ADD", {"speaker": "Ana"}),
        ("ADD", {"speaker": "Bea"}),
    ]
    (newer,) = tell(held, "I live in Rome.", MemoryForm(), "Bea")
    assert (newer.event, newer.cube.id) == ("UPDATE", written[1].cube.id)


def test_two_requests_at_once_store_one_memory(held: Held) -> None:
    others = ["I live in Lisbon."]

    def disturb() -> None:
        if others:
            hold(held, others.pop())

    held.disturb = disturb
    (same,) = say(held, "I live in Lisbon.")
    assert (same.event, told(held)) == ("NONE", ["I live in Lisbon."])


def test_a_turn_is_not_lost_among_many_other_writes(held: Held) -> None:
    numbers = iter(range(100))
    held.disturb = lambda: void(hold(held, f"note {next(numbers)}"))
    (new,) = say(held, "I live in Lisbon.")
    assert (new.event, len(told(held))) == ("ADD", writing.TRIES + 1)


def test_a_memory_that_does_not_last_is_not_all_that_is_known(held: Held) -> None:
    hold(held, expires="2999-01-01")
    assert [one.event for one in tell(held, "I live in Lisbon.", MemoryForm())] == ["ADD"]


def test_a_known_memory_becomes_as_delicate_but_lives_on(held: Held) -> None:
    (old,) = say(held, "I live in Lisbon.")
    again = tell(held, "I live in Lisbon.", DELICATE)
    assert [(one.event, one.cube.id, one.cube.version) for one in again] == [("NONE", old.cube.id, 1)]
    assert header(held, old.cube.id) == (("work",), ("health",), (Grant("tom"),), "")


def test_what_is_outdated_changes_nothing(held: Held) -> None:
    (old,) = say(held, "I live in Porto.", at="2026-02-01")
    writer = MemoryWriter(held, RuleReader())
    told = writer.remember("maya", [Spoken("user", "I live in Lisbon.")], form_at(DELICATE, "2026-01-01"))
    assert [one.event for one in told] == ["NONE"]
    assert held.vault.get(old.cube.id) == old.cube


def test_more_than_one_transaction_holds_is_refused(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_DRAFTS", 1)
    with pytest.raises(BadInput, match="in parts"):
        say(held, "I live in Lisbon. My favourite tea is oolong.")
    assert told(held) == []


def test_what_is_deleted_meanwhile_is_added_anew(held: Held) -> None:
    (old,) = say(held, "My favourite tea is oolong.")
    deletes = iter([old.cube.id])
    held.disturb = lambda: [held.vault.delete(cube_id, actor="maya") for cube_id in deletes].clear()
    (new,) = say(held, "My favourite tea is sencha.")
    assert (new.event, told(held)) == ("ADD", ["My favourite tea is sencha."])


def test_one_message_may_correct_itself(held: Held) -> None:
    (only,) = say(held, "My favourite tea is oolong. No, my favourite tea is sencha.")
    assert (only.event, only.cube.version, told(held)) == ("ADD", 2, ["my favourite tea is sencha."])


def test_memories_of_others_are_not_touched(held: Held) -> None:
    shared = MemCube.plaintext("My favourite tea is chai.", owner="tom", access=["maya"])
    held.vault.add([shared], actor="tom")
    (mine,) = say(held, "My favourite tea is oolong.")
    assert mine.event == "ADD"
    assert told(held, "tom") == ["My favourite tea is chai."]


def test_what_others_change_meanwhile_is_compared_anew(held: Held) -> None:
    (old,) = say(held, "My favourite tea is oolong.")
    changes = iter(["My favourite tea is chai."])

    def disturb() -> None:
        for text in changes:
            held.vault.update(old.cube.id, text, actor="maya")

    held.disturb = disturb
    (new,) = say(held, "My favourite tea is sencha.")
    assert (new.cube.version, new.cube.text) == (3, "My favourite tea is sencha.")
    numbers = iter(range(100))
    held.disturb = lambda: void(held.vault.update(old.cube.id, f"My favourite tea is {next(numbers)}.", actor="maya"))
    with pytest.raises(Conflict):
        say(held, "My favourite tea is gyokuro.")


def void(_: object) -> None:
    """Let go of a value."""


def turn(text: str, user: str = "maya") -> Turn:
    return Turn(user, (Spoken("user", text), Spoken("assistant", "Noted.")), MemoryForm(source="chat-1"))


def outcome(name: str) -> float:
    return float(metrics.turns().labels(name)._value.get())


async def settled(name: str, count: float) -> None:
    async with asyncio.timeout(10):
        while outcome(name) < count:  # noqa: ASYNC110 - a counter has nothing to wait for
            await asyncio.sleep(0.01)


def test_turns_are_written_in_the_background_in_order(held: Held) -> None:
    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))
        writer.start()
        before, nothing = outcome("written"), outcome("nothing")
        for number in range(20):
            assert writer.submit(turn(f"My favourite number is {number}."))
        assert writer.submit(turn("My favourite tea is chai.", user="tom"))
        assert writer.submit(turn("What is the time?"))
        await settled("written", before + 21)
        await settled("nothing", nothing + 1)

    asyncio.run(run())
    (memory,) = held.vault.list("maya")
    assert (memory.text, memory.version) == ("My favourite number is 19.", 20)
    assert told(held, "tom") == ["My favourite tea is chai."]


def test_a_turn_is_compared_with_what_its_key_is_cleared_for(held: Held) -> None:
    secret = MemCube.plaintext("My favourite tea is oolong.", owner="maya")
    held.vault.add([secret], actor="maya")
    held.vault.edit(secret.id, actor="maya", sensitivity=["health"])

    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))
        writer.start()
        before = outcome("written")
        writer.submit(dataclasses.replace(turn("My favourite tea is sencha."), clearance=frozenset(("work",))))
        await settled("written", before + 1)

    asyncio.run(run())
    assert told(held) == ["My favourite tea is oolong.", "My favourite tea is sencha."]


def test_too_many_turns_are_counted_and_logged(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "MAX_PER_TENANT", 2)

    async def run() -> list[bool]:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))  # not started: all of them wait
        heard = [writer.submit(turn("I live in Lisbon.")) for _ in range(4)]
        writer._stop()
        return [*heard, writer.submit(turn("I live in Lisbon."))]

    before = outcome("dropped")
    assert asyncio.run(run()) == [True, True, False, False, False]
    assert outcome("dropped") == before + 3
    assert caplog.text.count("make no memories") == 1


def test_turns_that_wait_when_the_server_stops_are_written(held: Held) -> None:
    release = threading.Event()

    class Slow(RuleReader):
        async def read(self, messages: Sequence[Spoken], *, owner: str, at: datetime, source: str) -> list[Draft]:
            release.wait(10)
            return self.drafts(messages, at)

    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, Slow()))
        writer.start()
        for number in range(writing.WORKERS + 3):
            writer.submit(turn(f"I have been to place number {number}.", user=f"user-{number}"))
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.2, release.set)

    asyncio.run(run())  # cancels what is still running, as vLLM does at its end
    deadline = time.monotonic() + 10
    while not all(len(told(held, f"user-{number}")) == 1 for number in range(writing.WORKERS + 3)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_user_said_before_they_are_forgotten_is_not_written(held: Held) -> None:
    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))
        before, written = outcome("forgotten"), outcome("written")
        early = turn("I live in Lisbon.")
        writer.forget("maya")
        writer.submit(early)
        writer.submit(turn("My favourite tea is oolong."))
        writer.start()
        await settled("forgotten", before + 1)
        await settled("written", written + 1)

    asyncio.run(run())
    assert told(held) == ["My favourite tea is oolong."]


@pytest.mark.parametrize("how", ["forget", "delete_owner"])
def test_a_turn_that_is_written_while_its_user_is_forgotten(held: Held, how: str) -> None:
    """By another process, say: nobody tells this one's writer. The vault refuses what was said before."""

    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))
        before, written = outcome("forgotten"), outcome("written")
        writer.submit(turn("I live in Lisbon."))
        held.disturb = lambda: getattr(held.vault, how)("maya", actor="admin")
        writer.start()
        await settled("forgotten", before + 1)
        held.disturb = lambda: None
        writer.submit(turn("My favourite tea is oolong."))
        await settled("written", written + 1)

    asyncio.run(run())
    assert told(held) == ["My favourite tea is oolong."]
    held.disturb = lambda: getattr(held.vault, how)("maya", actor="admin")
    with pytest.raises(Forgotten):
        say(held, "I live in Porto.")
    assert told(held) == []


def test_a_turn_that_fails_is_counted_and_the_next_one_is_written(
    held: Held, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writing, "RETRY_AFTER", 0.01)
    troubles: list[Exception] = [VaultUnavailable("busy")] * writing.TRIES + [RuntimeError("a bug")]

    def disturb() -> None:
        if troubles:
            raise troubles.pop(0)

    held.disturb = disturb

    async def run() -> None:
        writer = TurnWriter(MemoryWriter(held, RuleReader()))
        writer.start()
        before, written = outcome("failed"), outcome("written")
        for text in ("I live in Lisbon.", "I have a cat.", "My favourite tea is oolong."):
            writer.submit(turn(text))
        await settled("failed", before + 2)
        await settled("written", written + 1)

    asyncio.run(run())
    assert told(held) == ["My favourite tea is oolong."]
    assert "busy" in caplog.text and "a bug" in caplog.text


def test_the_date_of_a_form(held: Held) -> None:
    assert form_at(MemoryForm(), "").at is None
    assert form_at(MemoryForm(), "2026-03-12").at == datetime(2026, 3, 12, tzinfo=UTC)
    assert form_at(MemoryForm(), "2026-03-12T23:30:00-02:00").at == datetime(2026, 3, 13, 1, 30, tzinfo=UTC)
    (gym,) = say(held, "I went to the gym yesterday.", at="2026-03-12T23:30:00-05:00")
    assert gym.cube.header.happened == "2026-03-11"
