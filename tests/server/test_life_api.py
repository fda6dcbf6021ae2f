"""Versions, states, origin, access, snapshots and pipelines over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.server.conftest import Server
from tests.server.test_memories_api import add, refusal, texts

pytestmark = pytest.mark.server


@pytest.fixture
def client(open_api: Server, user: str) -> Iterator[httpx.Client]:
    """Speaks for `user`."""
    with open_api.http(**{"x-memos-user-id": user}) as client:
        yield client


@pytest.fixture
def stranger(open_api: Server, other: str) -> Iterator[httpx.Client]:
    """Speaks for `other`."""
    with open_api.http(**{"x-memos-user-id": other}) as client:
        yield client


def put(client: httpx.Client, memory: str, **body: Any) -> dict[str, Any]:
    answer = client.put(f"/v1/memories/{memory}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def found(client: httpx.Client, query: str, **body: Any) -> list[str]:
    return texts(client.post("/v1/memories/search", json={"query": query, **body}))


def test_versions_and_the_way_back(client: httpx.Client) -> None:
    memory = add(client, text="My favourite tea is oolong.", metadata={"topic": "tea"})["id"]
    put(client, memory, text="My favourite tea is sencha.", expect=1)
    versions = client.get(f"/v1/memories/{memory}/versions").json()["results"]
    assert [(version["version"], version["memory"]) for version in versions] == [
        (1, "My favourite tea is oolong."),
        (2, "My favourite tea is sencha."),
    ]
    back = client.post(f"/v1/memories/{memory}/rollback", json={"version": 1}).json()
    assert (back["version"], back["memory"], back["event"]) == (3, "My favourite tea is oolong.", "UPDATE")
    assert found(client, "tea") == ["My favourite tea is oolong."]
    history = client.get(f"/v1/memories/{memory}/history").json()["results"]
    assert [change["operation"] for change in history] == ["add", "overwrite", "rollback"]
    refusal(client.post(f"/v1/memories/{memory}/rollback", json={"version": 9}), 404)


def test_a_version_that_somebody_else_changed_is_not_overwritten(client: httpx.Client) -> None:
    memory = add(client, text="I like oolong.")["id"]
    put(client, memory, text="I like sencha.")
    refusal(client.put(f"/v1/memories/{memory}", json={"text": "I like chai.", "expect": 1}), 409)
    assert client.get(f"/v1/memories/{memory}").json()["memory"] == "I like sencha."


def test_an_edit_is_no_new_version(client: httpx.Client) -> None:
    memory = add(client, text="I like oolong.")["id"]
    body = {"tags": ["tea"], "priority": "high", "expires": "2099-01-01", "sensitivity": ["health"]}
    edited = client.patch(f"/v1/memories/{memory}", json=body).json()
    assert {name: edited[name] for name in body} == body
    assert edited["version"] == 1
    assert found(client, "oolong", tags=["tea"]) == ["I like oolong."]
    refusal(client.patch(f"/v1/memories/{memory}", json={}), 400)


def test_an_update_without_text_changes_metadata_and_expiry(client: httpx.Client) -> None:
    memory = add(client, text="I like oolong.", expires="2099-01-01", metadata={"a": 1})["id"]
    changed = put(client, memory, metadata={"b": 2}, expiration_date=None)
    assert (changed["metadata"], changed["expires"], changed["version"]) == ({"a": 1, "b": 2}, "", 1)


def test_archived_and_frozen_memories_leave_the_search_and_come_back(client: httpx.Client) -> None:
    memory = add(client, text="I used to row.")["id"]
    for state in ("archived", "activated", "frozen", "activated"):
        answer = client.put(f"/v1/memories/{memory}/state", json={"state": state})
        assert answer.json()["state"] == state
        assert found(client, "row") == (["I used to row."] if state == "activated" else [])
        assert found(client, "row", archived=True) == (["I used to row."] if state == "archived" else [])
    message = refusal(client.put(f"/v1/memories/{memory}/state", json={"state": "generated"}), 409)
    assert "activated" in message and "generated" in message
    refusal(client.put(f"/v1/memories/{memory}/state", json={"state": "asleep"}), 400)


def test_archived_memories_are_narrowed_before_they_are_cut(client: httpx.Client) -> None:
    for text, tag in (("row row row", "x"), ("I row with Ada, and have for years now.", "y")):
        memory = add(client, text=text, tags=[tag], happened="2025-04-10")["id"]
        client.put(f"/v1/memories/{memory}/state", json={"state": "archived"})
    assert found(client, "row", archived=True, top_k=1) == ["row row row"]
    assert found(client, "row", archived=True, top_k=1, tags=["y"]) == ["I row with Ada, and have for years now."]
    assert found(client, "row", archived=True, types=["episode"]) == []
    assert found(client, "row", archived=True, until="2025-04-10T01:00:00+02:00") == []
    refusal(client.post("/v1/memories/search", json={"query": "row", "archived": True, "since": "garbage"}), 400)


def test_sharing_and_taking_back(client: httpx.Client, stranger: httpx.Client, other: str) -> None:
    memory = add(client, text="The door code is under the mat.")["id"]
    refusal(stranger.get(f"/v1/memories/{memory}"), 404)
    shared = client.post(f"/v1/memories/{memory}/access", json={"principal": other, "rights": ["write"]}).json()
    assert shared["results"] == [{"principal": other, "rights": ["read", "write"]}]
    assert found(stranger, "door code") == ["The door code is under the mat."]
    assert put(stranger, memory, text="The door code is with Ada.")["version"] == 2
    refusal(stranger.post(f"/v1/memories/{memory}/access", json={"principal": "eve"}), 403)
    refusal(stranger.put(f"/v1/memories/{memory}/state", json={"state": "frozen"}), 403)
    refusal(stranger.get(f"/v1/memories/{memory}/access"), 403)
    left = client.delete(f"/v1/memories/{memory}/access", params={"principal": other}).json()
    assert left == {"results": []}
    refusal(stranger.get(f"/v1/memories/{memory}"), 404)
    assert found(stranger, "door code") == []


@pytest.mark.parametrize(
    "body",
    [
        {"expiration_date": "2020-01-01"},
        {"expiration_date": None},
        {"text": "The shed is open.", "expiration_date": "2020-01-01"},
        {"metadata": {"place": "nowhere"}},
    ],
)
def test_who_may_write_changes_nothing_that_the_owner_cannot_undo(
    client: httpx.Client, stranger: httpx.Client, other: str, body: dict[str, Any]
) -> None:
    before = add(client, text="The shed is locked.", expires="2099-01-01", metadata={"place": "shed"})
    memory = before["id"]
    client.post(f"/v1/memories/{memory}/access", json={"principal": other, "rights": ["write"]})
    for path in (f"/v1/memories/{memory}", f"/v1/memories/{memory}/"):
        refusal(stranger.put(path, json=body), 403)
    after = client.get(f"/v1/memories/{memory}").json()
    names = ("memory", "version", "expires", "metadata")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    assert put(stranger, memory, text="The shed is open.", metadata={"place": "yard"})["version"] == 2


def test_a_right_to_share_passes_on_what_is_held(client: httpx.Client, stranger: httpx.Client, other: str) -> None:
    memory = add(client, text="We meet at noon.")["id"]
    path = f"/v1/memories/{memory}/access"
    client.put(path, json={"access": [{"principal": other, "rights": ["share"]}, "ann"]})
    passed = stranger.post(path, json={"principal": "eve"}).json()
    assert passed["results"] == [{"principal": "eve", "rights": ["read"]}]
    refusal(stranger.post(path, json={"principal": "eve", "rights": ["write"]}), 403)
    refusal(stranger.delete(path, params={"principal": "ann"}), 403)
    refusal(client.post(path, json={"principal": "eve", "rights": []}), 400)
    names = {grant["principal"] for grant in client.get(path).json()["results"]}
    assert names == {other, "ann", "eve"}


def test_a_reader_sees_no_old_texts(client: httpx.Client, stranger: httpx.Client, other: str) -> None:
    memory = add(client, text="My pin is 1234.")["id"]
    put(client, memory, text="My pin is a secret.")
    client.post(f"/v1/memories/{memory}/access", json={"principal": other})
    assert stranger.get(f"/v1/memories/{memory}").json()["memory"] == "My pin is a secret."
    for part in ("versions", "history"):
        refusal(stranger.get(f"/v1/memories/{memory}/{part}"), 403)
    origin = stranger.get(f"/v1/memories/{memory}/provenance").json()["results"]
    assert [(ancestor["version"], ancestor["author"]) for ancestor in origin] == [(2, ""), (1, "")]


def test_a_snapshot_brings_memories_back(client: httpx.Client) -> None:
    kept, gone = add(client, text="The bike is red.")["id"], add(client, text="The cat is Tilda.")["id"]
    taken = client.post("/v1/snapshots", json={"name": "before the move"}).json()
    assert (taken["name"], taken["memories"]) == ("before the move", 2)
    refusal(client.post("/v1/snapshots", json={"name": "before the move"}), 409)
    put(client, kept, text="The bike is blue.")
    assert client.delete(f"/v1/memories/{gone}").json()["in_snapshots"] == 1
    pin = add(client, text="The pin is 4711.")["id"]
    client.post("/v1/snapshots", json={"name": "with the pin"})
    assert client.delete(f"/v1/memories/{pin}", params={"snapshots": True}).json()["in_snapshots"] == 0
    assert client.post("/v1/snapshots/with%20the%20pin/restore").json()["revived"] == []
    late = add(client, text="The flat is in Lisbon.")["id"]
    restored = client.post("/v1/snapshots/before%20the%20move/restore").json()
    assert [memory["memory"] for memory in restored["results"]] == ["The bike is red."]
    assert [memory["memory"] for memory in restored["revived"]] == ["The cat is Tilda."]
    assert [memory["id"] for memory in restored["archived"]] == [late]
    assert sorted(found(client, "red cat Lisbon bike")) == ["The bike is red.", "The cat is Tilda."]
    assert client.get("/v1/snapshots").json()["results"][0]["name"] == "before the move"
    assert client.delete("/v1/snapshots/before%20the%20move").status_code == 200
    refusal(client.delete("/v1/snapshots/before%20the%20move"), 404)


def test_the_past_can_be_listed(client: httpx.Client) -> None:
    memory = add(client, text="I live in Lisbon.")["id"]
    between = datetime.now(UTC).isoformat()
    put(client, memory, text="I live in Porto.")
    assert texts(client.get("/v1/memories", params={"as_of": between})) == ["I live in Lisbon."]
    assert texts(client.get("/v1/memories")) == ["I live in Porto."]
    refusal(client.get("/v1/memories", params={"as_of": "yesterday"}), 400)


def test_a_pipeline_is_applied_wholly(client: httpx.Client, other: str) -> None:
    first = add(client, text="I like oolong.")["id"]
    steps = [
        {"type": "add", "text": "I like sencha.", "tags": ["tea"]},
        {"type": "merge", "ids": [first, "#0"], "text": "I like oolong and sencha."},
        {"type": "grant", "id": "#1", "principal": other, "rights": ["read"]},
    ]
    results = client.post("/v1/pipelines", json={"steps": steps}).json()["results"]
    assert [memory["memory"] for memory in results[:2]] == ["I like sencha.", "I like oolong and sencha."]
    assert results[2]["access"] == [other]
    assert found(client, "sencha") == ["I like oolong and sencha."]
    assert client.get(f"/v1/memories/{first}").json()["state"] == "merged"
    origin = client.get(f"/v1/memories/{results[1]['id']}/provenance").json()["results"]
    assert {first, results[0]["id"]} <= {ancestor["id"] for ancestor in origin}


def test_a_pipeline_is_applied_wholly_or_not_at_all(client: httpx.Client, stranger: httpx.Client, user: str) -> None:
    mine, theirs = add(client, text="I like oolong.")["id"], add(stranger, text="I like chai.")["id"]
    missing = theirs[:-4] + ("0000" if theirs[-4:] != "0000" else "1111")
    messages = []
    for memory in (theirs, missing):
        steps = [{"type": "add", "text": "I row."}, {"type": "delete", "id": mine}, {"type": "delete", "id": memory}]
        answer = client.post("/v1/pipelines", json={"steps": steps})
        messages.append(refusal(answer, 404).replace(memory, ""))
    assert messages[0] == messages[1], "a private memory looks like a missing one"
    assert texts(client.get("/v1/memories")) == ["I like oolong."]
    delicate = [{"type": "add", "text": "I take lithium.", "sensitivity": ["health"]}]
    (added,) = client.post("/v1/pipelines", json={"steps": delicate}).json()["results"]
    assert added["sensitivity"] == ["health"]
    steps = [{"type": "transfer", "id": mine, "owner": "eve"}]
    refusal(client.post("/v1/pipelines", json={"steps": steps}), 403)
    refusal(client.post("/v1/pipelines", json={"steps": [{"type": "burn", "id": mine}]}), 400)


def test_a_purified_memory_has_no_old_text(client: httpx.Client) -> None:
    memory = add(client, text="Ada's number is 555 1234.")["id"]
    steps = [{"type": "purify", "id": memory, "text": "Ada has a number."}]
    assert client.post("/v1/pipelines", json={"steps": steps}).status_code == 200
    for part in ("versions", "history"):
        assert "555 1234" not in client.get(f"/v1/memories/{memory}/{part}").text


def test_several_are_deleted_together_or_not_at_all(client: httpx.Client, stranger: httpx.Client) -> None:
    ids = [add(client, text=text)["id"] for text in ("one", "two", "three")]
    theirs = add(stranger, text="four")["id"]
    refusal(client.post("/v1/memories/delete", json={"ids": [ids[0], theirs]}), 404)
    assert client.post("/v1/memories/delete", json={"ids": ids[:2]}).json()["deleted"] == 2
    assert texts(client.get("/v1/memories")) == ["three"]
    refusal(client.post("/v1/memories/delete", json={"ids": []}), 400)
