"""Memories out of chat turns and of `infer: true`, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from memos_vllm.memory_block import INTRO, memory_line
from tests.server.conftest import MODEL_NAME, Server, running_server
from tests.server.test_chat import tokenizer

pytestmark = pytest.mark.server

PATIENCE = 120.0
"""Seconds that a background write may take on a busy machine whose model answers in hundreds of tokens."""

CHAT: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 2, "temperature": 0}


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def chat(server: Server, user: str, text: str, mode: str | None = None, /, **body: Any) -> httpx.Response:
    headers = {"x-memos-user-id": user} | ({"x-memos-mode": mode} if mode else {})
    with server.http(**headers) as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "messages": said(text), **body})
    assert answer.status_code == 200, answer.text
    return answer


def memories(server: Server, user: str) -> list[dict[str, Any]]:
    with server.http() as client:
        return list(client.get("/v1/memories", params={"user_id": user}).raise_for_status().json()["results"])


def awaited(server: Server, user: str, done: Callable[[list[str]], bool]) -> list[dict[str, Any]]:
    """The user's memories, once their texts are as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not done([memory["memory"] for memory in memories(server, user)]):
        assert time.monotonic() < deadline, memories(server, user)
        time.sleep(0.1)
    return memories(server, user)


def outcomes(server: Server, name: str, label: str) -> float:
    with server.http() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and label in line)


def test_a_preference_over_three_sessions(open_server: Server, user: str) -> None:
    first = chat(open_server, user, "Hi! My favourite tea is oolong. How are you?", "readwrite")
    assert first.headers["x-memos-cubes"] == ""
    (memory,) = awaited(open_server, user, bool)
    assert memory["memory"] == "My favourite tea is oolong."

    chat(open_server, user, "Actually, my favourite tea is sencha now.", "readwrite")
    (changed,) = awaited(open_server, user, lambda texts: texts != ["My favourite tea is oolong."])
    assert (changed["id"], changed["version"]) == (memory["id"], 2)
    assert changed["memory"] == "my favourite tea is sencha now."

    third = chat(open_server, user, "Which tea shall I brew?", return_token_ids=True)
    assert third.headers["x-memos-cubes"] == memory["id"]
    prompt = tokenizer.decode(third.json()["prompt_token_ids"])
    assert INTRO + memory_line("my favourite tea is sencha now.") in prompt and "oolong" not in prompt

    with open_server.http(**{"x-memos-user-id": user}) as client:
        history = client.get(f"/v1/memories/{memory['id']}/history").json()["results"]
        assert [change["event"] for change in history] == ["ADD", "UPDATE"]
        assert history[1]["old_memory"] == "My favourite tea is oolong."
        client.post(f"/v1/memories/{memory['id']}/rollback", json={"version": 1}).raise_for_status()
    again = chat(open_server, user, "Which tea shall I brew?", return_token_ids=True)
    assert memory_line("My favourite tea is oolong.") in tokenizer.decode(again.json()["prompt_token_ids"])


def test_streamed_chat_and_the_other_routes_make_memories_too(open_server: Server, user: str) -> None:
    headers = {"x-memos-user-id": user, "x-memos-mode": "write", "x-memos-run-id": "session-7"}
    with open_server.openai(**headers) as client:
        stream = client.chat.completions.create(**CHAT, messages=said("I live in Lisbon."), stream=True)
        assert list(stream)
        client.responses.create(model=MODEL_NAME, input="My name is Maya.", max_output_tokens=2)
        for _ in client.responses.create(model=MODEL_NAME, input="I have a cat.", max_output_tokens=2, stream=True):
            pass
    with anthropic.Anthropic(base_url=open_server.url, api_key="none", default_headers=headers) as other:
        other.messages.create(model=MODEL_NAME, max_tokens=2, messages=said("I work at Acme."))
    found = awaited(open_server, user, lambda texts: len(texts) == 4)
    assert {memory["memory"] for memory in found} == {
        *("I live in Lisbon.", "My name is Maya.", "I have a cat.", "I work at Acme."),
    }
    assert {memory["source"] for memory in found} == {"session-7"}


def test_turns_of_one_conversation_have_one_source(open_server: Server, user: str) -> None:
    first = said("I live in Lisbon.")
    chat(open_server, user, "", "write", messages=first)
    awaited(open_server, user, lambda texts: len(texts) == 1)
    answer = {"role": "assistant", "content": "Lovely."}
    chat(open_server, user, "", "write", messages=[*first, answer, *said("I have a cat.")])
    one, two = awaited(open_server, user, lambda texts: len(texts) == 2)
    assert one["source"] == two["source"] != ""
    chat(open_server, user, "I work at Acme.", "write")
    assert awaited(open_server, user, lambda texts: len(texts) == 3)[2]["source"] != one["source"]


@pytest.mark.parametrize(
    ("mode", "writes", "reads"), [("write", 1, 0), ("readwrite", 1, 1), ("read", 0, 1), ("off", 0, 0)]
)
@pytest.mark.parametrize("place", ["header", "body"])
def test_the_mode_says_what_a_chat_does(
    open_server: Server, user: str, other: str, mode: str, writes: int, reads: int, place: str
) -> None:
    open_server.remember(user, "My favourite tea is oolong.")
    if place == "header":
        answer = chat(open_server, user, "I live in Lisbon.", mode)
    else:
        answer = chat(open_server, user, "I live in Lisbon.", memory={"mode": mode})
    assert ("x-memos-cubes" in answer.headers) == bool(reads)
    chat(open_server, other, "I live in Rome.", "write")
    awaited(open_server, other, bool)  # turns are taken in order: what the first chat makes is there by now
    time.sleep(0.2)
    assert len(memories(open_server, user)) == 1 + writes


def test_questions_and_refused_requests_make_no_memories(open_server: Server, user: str) -> None:
    before = outcomes(open_server, "memos_turns_total", 'outcome="nothing"')
    chat(open_server, user, "Which tea shall I brew?", "write")
    with open_server.http(**{"x-memos-user-id": user, "x-memos-mode": "write"}) as client:
        refused = client.post("/v1/chat/completions", json={**CHAT, "messages": said("I live in Lisbon."), "n": 0})
        assert refused.status_code == 400
    with open_server.http(**{"x-memos-user-id": user}) as client:
        body = {**CHAT, "messages": said("I live in Lisbon."), "memory": {"mode": "all"}}
        assert client.post("/v1/chat/completions", json=body).status_code == 400
    deadline = time.monotonic() + PATIENCE
    while outcomes(open_server, "memos_turns_total", 'outcome="nothing"') == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert memories(open_server, user) == []


def test_nobody_is_remembered_without_an_identity(open_server: Server) -> None:
    before = outcomes(open_server, "memos_turns_total", "outcome=")
    with open_server.http(**{"x-memos-mode": "write"}) as client:
        client.post("/v1/chat/completions", json={**CHAT, "messages": said("I live in Lisbon.")}).raise_for_status()
    time.sleep(0.5)
    assert outcomes(open_server, "memos_turns_total", "outcome=") == before


def test_a_client_that_hangs_up_has_still_said_it(open_server: Server, user: str) -> None:
    body = {**CHAT, "messages": said("I live in Lisbon."), "stream": True, "max_tokens": 1900, "ignore_eos": True}
    with (
        open_server.http(**{"x-memos-user-id": user, "x-memos-mode": "write"}) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert next(answer.iter_lines()).startswith("data: ")
    assert [memory["memory"] for memory in awaited(open_server, user, bool)] == ["I live in Lisbon."]


@pytest.fixture(scope="module")
def asking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks its model what to remember, of every chat."""
    flags = ("--memory-splice", "off", "--memory-mode", "readwrite", "--memory-reader", "model")
    with running_server(tmp_path_factory.mktemp("asking"), *flags) as server:
        yield server


def test_a_model_that_says_nothing_usable_has_the_rules_read(asking_server: Server, user: str) -> None:
    """The bundled model can recall and nothing else, so its answers under the schema are of no use."""
    chat(asking_server, user, "My favourite tea is oolong.")
    assert [memory["memory"] for memory in awaited(asking_server, user, bool)] == ["My favourite tea is oolong."]
    assert outcomes(asking_server, "memos_reader_fallbacks_total", "cause=") >= 1
    assert "Traceback" not in asking_server.log.read_text(errors="replace")


def test_infer_asks_the_model_too(asking_server: Server, user: str) -> None:
    before = outcomes(asking_server, "memos_reader_fallbacks_total", "cause=")
    with asking_server.http() as client:
        body = {"messages": said("I live in Lisbon. What is the time?"), "user_id": user, "infer": True}
        results = client.post("/v1/memories", json=body).raise_for_status().json()["results"]
    assert [(one["memory"], one["event"]) for one in results] == [("I live in Lisbon.", "ADD")]
    assert outcomes(asking_server, "memos_reader_fallbacks_total", "cause=") >= before + 1
