"""Memories keep their places over the turns of a conversation, so that vLLM's prefix cache finds what it knows."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.server.conftest import MODEL_NAME, Server

pytestmark = pytest.mark.server

Messages = list[dict[str, Any]]


def ask(server: Server, user: str, messages: Messages, **headers: str) -> tuple[list[str], list[int]]:
    """Ids of the memories in the prompt, in order, and the prompt's tokens."""
    body = {"model": MODEL_NAME, "messages": messages, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    with server.http(**{"x-memos-user-id": user, **headers}) as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-memos-cubes"].split(","), answer.json()["prompt_token_ids"]


def turn(question: str, answer: str = "") -> Messages:
    said = [{"role": "user", "content": question}]
    return [*said, {"role": "assistant", "content": answer}] if answer else said


def test_memories_of_a_turn_stay_in_front_in_the_next(open_server: Server, user: str) -> None:
    tea, dog, city = open_server.remember(user, "I drink oolong tea.", "My dog is called Rex.", "Lisbon is my city.")
    first = turn("What is my dog called?")
    second = [*turn("What is my dog called?", "Rex."), *turn("And my tea?")]
    third = [*turn("What is my dog called?", "Rex."), *turn("And my tea?", "Oolong."), *turn("Which city?")]
    cubes, before = ask(open_server, user, first)
    assert cubes == [dog]
    cubes, ids = ask(open_server, user, second)
    assert cubes == [dog, tea]
    same = next(place for place, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other)
    assert same > len(before) // 2  # the scaffold and the first memory are those of the turn before
    assert ask(open_server, user, third)[0] == [dog, tea, city]
    assert ask(open_server, user, third)[0] == [dog, tea, city]
    with open_server.http() as client:
        client.delete(f"/v1/memories/{dog}", params={"user_id": user}).raise_for_status()
    assert ask(open_server, user, third)[0] == [tea, city]
    assert ask(open_server, user, turn("Do I drink oolong in my city?"))[0] == [tea, city]


def test_another_users_conversation_of_the_same_words_is_another(open_server: Server, user: str, other: str) -> None:
    open_server.remember(user, "My dog is called Rex.")
    (theirs,) = open_server.remember(other, "My dog is called Bo.")
    ask(open_server, user, turn("What is my dog called?"))
    assert ask(open_server, other, turn("What is my dog called?"))[0] == [theirs]


def test_a_request_may_choose_the_policy(open_server: Server, user: str) -> None:
    open_server.remember(user, "I drink oolong tea.")
    for policy in ("lru", "label", "frequency", "priority", "semantic"):
        ask(open_server, user, turn("Which tea?"), **{"x-memos-policy": policy})
    with open_server.http(**{"x-memos-user-id": user, "x-memos-policy": "mru"}) as client:
        body = {"model": MODEL_NAME, "messages": turn("Which tea?"), "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 400


def test_an_archived_memory_comes_back_by_being_named(open_server: Server, user: str, other: str) -> None:
    (tea,) = open_server.remember(user, "I drink oolong tea.")
    with open_server.http(**{"x-memos-user-id": user}) as client:
        client.put(f"/v1/memories/{tea}/state", json={"state": "archived"}).raise_for_status()
    assert ask(open_server, user, turn("Which tea?"))[0] == [""]
    with open_server.http(**{"x-memos-user-id": other, "x-memos-cubes": tea}) as client:
        body = {"model": MODEL_NAME, "messages": turn("Which tea?"), "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 404
    assert ask(open_server, user, turn("Which tea?"), **{"x-memos-cubes": tea})[0] == [tea]
    deadline = time.monotonic() + 30
    while ask(open_server, user, turn("Which tea is it?"))[0] != [tea]:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_the_first_use_activates_and_is_counted(open_server: Server, user: str) -> None:
    (tea,) = open_server.remember(user, "I drink oolong tea.")
    ask(open_server, user, turn("Which tea?"))
    deadline = time.monotonic() + 30
    while True:
        with open_server.http() as client:
            memory = client.get(f"/v1/memories/{tea}", params={"user_id": user}).json()
            metrics = client.get("/metrics").text
        if memory["state"] == "activated":
            break
        assert time.monotonic() < deadline, memory
        time.sleep(0.5)
    assert memory["accesses"] == 1 and memory["last_access"]
    assert 'memos_transitions_total{state="activated"}' in metrics
    assert 'memos_planned_total{policy="semantic"}' in metrics
