"""`POST /v1/memories` with `infer: true`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import Server

pytestmark = pytest.mark.server


@pytest.fixture
def client(open_api: Server, user: str) -> Iterator[httpx.Client]:
    with open_api.http(**{"x-memos-user-id": user}) as client:
        yield client


def inferred(client: httpx.Client, *texts: str, **body: Any) -> list[tuple[str, str, int]]:
    messages = [{"role": "user", "content": text} for text in texts]
    answer = client.post("/v1/memories", json={"messages": messages, "infer": True, **body})
    assert answer.status_code == 200, answer.text
    return [(one["memory"], one["event"], one["version"]) for one in answer.json()["results"]]


def test_statements_become_memories(client: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "Hi! I live in Lisbon, and my favourite tea is oolong. What is the weather?"},
        {"role": "assistant", "content": "I live in the cloud."},
        {"role": "user", "content": [{"type": "text", "text": "I have a cat. It is called Tilda."}]},
    ]
    body = {"messages": messages, "infer": True, "run_id": "session-7", "metadata": {"app": "web"}, "tags": ["talk"]}
    results = client.post("/v1/memories", json={**body, "timestamp": "2026-03-12"}).json()["results"]
    assert [one["memory"] for one in results] == [
        "I live in Lisbon",
        "my favourite tea is oolong.",
        "I have a cat. It is called Tilda.",
    ]
    assert [one["semantic_type"] for one in results] == ["fact", "user_preference", "fact"]
    for one in results:
        assert (one["event"], one["source"], one["tags"], one["happened"]) == (
            "ADD",
            "session-7",
            ["talk"],
            "2026-03-12",
        )
        assert one["metadata"] == {"app": "web", "run_id": "session-7"}


def test_what_is_known_stays_and_what_is_contradicted_changes(client: httpx.Client) -> None:
    assert inferred(client, "I live in Lisbon. I have a cat.") == [
        ("I live in Lisbon.", "ADD", 1),
        ("I have a cat.", "ADD", 1),
    ]
    assert inferred(client, "I have a cat. I moved to Porto.") == [
        ("I have a cat.", "NONE", 1),
        ("I moved to Porto.", "UPDATE", 2),
    ]
    listed = client.get("/v1/memories").json()["results"]
    assert [one["memory"] for one in listed] == ["I moved to Porto.", "I have a cat."]
    assert {one["happened"] for one in listed} == {listed[0]["happened"]}


def test_a_correction_has_the_date_of_its_message(client: httpx.Client) -> None:
    inferred(client, "I live in Lisbon.", timestamp="2026-01-05")
    inferred(client, "I have a cat. I moved to Porto yesterday.", timestamp="2026-02-10")
    assert [one["happened"] for one in client.get("/v1/memories").json()["results"]] == ["2026-02-10", "2026-02-10"]


def test_a_verbatim_memory_is_corrected_in_its_place(client: httpx.Client) -> None:
    text = "I am Maya. I live in Lisbon. I have a cat."
    client.post("/v1/memories", json={"text": text, "infer": False}).raise_for_status()
    assert inferred(client, "I live in Porto now.") == [("I am Maya. I live in Porto now. I have a cat.", "UPDATE", 2)]


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": [{"role": "assistant", "content": "Noted."}]}])
def test_nothing_said_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/v1/memories", json={**body, "infer": True}).status_code == 400


def test_nothing_told_is_no_memory(client: httpx.Client) -> None:
    assert inferred(client, "What is the weather?", "Thanks!") == []


def test_a_text_is_the_users(client: httpx.Client) -> None:
    answer = client.post("/v1/memories", json={"text": "I live in Lisbon. What is the weather?", "infer": True})
    assert [one["memory"] for one in answer.json()["results"]] == ["I live in Lisbon."]
