"""`/v1/memories` over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import KEYS, SERVICE_KEY, Server

pytestmark = pytest.mark.server


@pytest.fixture
def client(open_api: Server) -> Iterator[httpx.Client]:
    with open_api.http() as client:
        yield client


def add(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """Add one memory and return it."""
    answer = client.post("/v1/memories", json=body)
    assert answer.status_code == 200, answer.text
    (memory,) = answer.json()["results"]
    return dict(memory)


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [memory["memory"] for memory in answer.json()["results"]]


def refusal(answer: httpx.Response, status: int) -> str:
    """The message of an error answer in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == status
    assert error["type"]
    assert error["message"]
    return str(error["message"])


def test_a_text_becomes_a_memory(client: httpx.Client, user: str) -> None:
    memory = add(client, text="I like oolong.", user_id=user, metadata={"topic": "tea", "n": 1}, run_id="session-7")
    assert memory["memory"] == "I like oolong."
    assert memory["user_id"] == user
    assert memory["metadata"] == {"topic": "tea", "n": 1, "run_id": "session-7"}
    assert memory["created_at"] == memory["updated_at"]
    assert memory["event"] == "ADD"
    read = client.get(f"/v1/memories/{memory['id']}", params={"user_id": user}).json()
    assert read == {name: value for name, value in memory.items() if name != "event"}


@pytest.mark.parametrize("infer", [False, None])
def test_user_messages_become_memories_word_for_word(client: httpx.Client, user: str, infer: bool | None) -> None:
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "  I live in Lisbon. "},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": [{"type": "text", "text": "I have a cat."}, {"type": "text", "text": "Tilda."}]},
    ]
    body = {"messages": messages, "user_id": user, "infer": infer, "output_format": "v1.1", "async_mode": False}
    assert texts(client.post("/v1/memories", json=body)) == ["  I live in Lisbon. ", "I have a cat.\nTilda."]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "Noted."}]},
        {"text": "  "},
        {"messages": [{"role": "user", "content": 7}]},
        {"text": "x", "metadata": {"nested": {"a": 1}}},
        {"text": "x", "expires": "soon"},
        {"text": "x", "access": [""]},
        {"messages": [{"role": "user", "content": "x"}] * 1001},
        {"messages": [{"role": "user", "content": "x"}] * 1001, "infer": True},
    ],
)
def test_what_cannot_be_remembered_is_refused(client: httpx.Client, user: str, body: dict[str, Any]) -> None:
    refusal(client.post("/v1/memories", json={**body, "user_id": user}), 400)
    assert texts(client.get("/v1/memories", params={"user_id": user})) == []


def test_a_body_that_is_not_json_is_refused(client: httpx.Client, user: str) -> None:
    headers = {"content-type": "application/json", "x-memos-user-id": user}
    refusal(client.post("/v1/memories", content=b'{"text": ', headers=headers), 400)


def test_messages_are_stored_all_or_none(client: httpx.Client, user: str) -> None:
    messages = [{"role": "user", "content": "short"}, {"role": "user", "content": "x" * (1 << 20) + "x"}]
    refusal(client.post("/v1/memories", json={"messages": messages, "user_id": user}), 413)
    assert texts(client.get("/v1/memories", params={"user_id": user})) == []


@pytest.mark.parametrize("path", ["/v1/memories", "/v1/memories/0123456789abcdef0123456789abcdef"])
def test_without_a_user_there_are_no_memories(client: httpx.Client, path: str) -> None:
    assert "user_id" in refusal(client.get(path), 400)


@pytest.mark.parametrize("name", ["x", "zoë", "茶"])
@pytest.mark.parametrize("header", ["x-memos-user-id", "x-sm-user-id"])
def test_a_header_may_name_the_user(client: httpx.Client, user: str, header: str, name: str) -> None:
    who = f"{name}-{user}"
    answer = client.post("/v1/memories", json={"text": "I like tea."}, headers={header.encode(): who.encode()})
    assert answer.json()["results"][0]["user_id"] == who
    assert texts(client.get("/v1/memories", params={"user_id": who})) == ["I like tea."]


@pytest.mark.parametrize("name", ["a" * 129, " padded", "new\nline"])
def test_a_malformed_user_is_refused(client: httpx.Client, name: str) -> None:
    assert "user id" in refusal(client.post("/v1/memories", json={"text": "x", "user_id": name}), 400)


def test_a_list_comes_in_pages_of_the_oldest_first(client: httpx.Client, user: str, other: str) -> None:
    for number in range(5):
        add(client, text=f"fact {number}", user_id=user)
    add(client, text="not yours", user_id=other)
    first = client.get("/v1/memories", params={"user_id": user, "limit": 3})
    assert texts(first) == ["fact 0", "fact 1", "fact 2"]
    after = first.json()["results"][-1]["id"]
    rest = client.get("/v1/memories", params={"user_id": user, "limit": 3, "after": after})
    assert texts(rest) == ["fact 3", "fact 4"]


@pytest.mark.parametrize("path", ["/v1/memories/search", "/v1/search"])
def test_search_finds_the_best_first(client: httpx.Client, user: str, path: str) -> None:
    for text in ("I live in Lisbon.", "My favourite tea is oolong.", "Tea bores my brother."):
        add(client, text=text, user_id=user)
    answer = client.post(path, json={"query": "Which tea is my favourite?", "user_id": user, "top_k": 2})
    assert texts(answer) == ["My favourite tea is oolong.", "Tea bores my brother."]
    scores = [memory["score"] for memory in answer.json()["results"]]
    assert scores[0] > scores[1] > 0


def test_search_takes_mem0s_filters_and_limit(client: httpx.Client, user: str) -> None:
    add(client, text="Tea at five.", user_id=user, metadata={"kind": "habit"})
    add(client, text="Tea is from China.", user_id=user, metadata={"kind": "fact"})
    body = {"query": "tea", "limit": 5, "filters": {"user_id": user, "kind": "fact"}}
    assert texts(client.post("/v1/memories/search", json=body)) == ["Tea is from China."]


def test_search_sees_own_and_shared_memories_only(client: httpx.Client, user: str, other: str) -> None:
    add(client, text="My tea is private.", user_id=other)
    add(client, text="Our tea is shared.", user_id=other, access=[user])
    answer = client.post("/v1/memories/search", json={"query": "tea", "user_id": user})
    assert texts(answer) == ["Our tea is shared."]


def test_a_private_memory_looks_like_a_missing_one(client: httpx.Client, user: str, other: str) -> None:
    private = add(client, text="My tea is private.", user_id=other)["id"]
    missing = private[:-4] + ("0000" if private[-4:] != "0000" else "1111")
    as_user = {"user_id": user}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/history"), ("PUT", "")):
        body = {"text": "mine now"} if method == "PUT" else None
        answers = [
            client.request(method, f"/v1/memories/{memory}{path}", params=as_user, json=body)
            for memory in (private, missing)
        ]
        messages = [refusal(answer, 404).replace(private, "").replace(missing, "") for answer in answers]
        assert messages[0] == messages[1]
    assert texts(client.get("/v1/memories", params={"user_id": other})) == ["My tea is private."]


@pytest.mark.parametrize("memory_id", ["x", "é", "0" * 2000, "%00", "A" * 32])
def test_an_id_that_cannot_be_is_not_found(client: httpx.Client, user: str, memory_id: str) -> None:
    refusal(client.get(f"/v1/memories/{memory_id}", params={"user_id": user}), 404)


def test_a_reader_may_not_write(client: httpx.Client, user: str, other: str) -> None:
    shared = add(client, text="Our tea is shared.", user_id=other, access=[user])["id"]
    seen = client.get(f"/v1/memories/{shared}", params={"user_id": user}).json()
    assert (seen["memory"], seen["access"]) == ("Our tea is shared.", [])
    refusal(client.put(f"/v1/memories/{shared}", json={"text": "Mine.", "user_id": user}), 403)
    refusal(client.delete(f"/v1/memories/{shared}", params={"user_id": user}), 403)
    assert client.get(f"/v1/memories/{shared}", params={"user_id": other}).json()["version"] == 1


def test_an_update_is_a_new_version_with_a_history(client: httpx.Client, user: str) -> None:
    memory = add(client, text="I like oolong.", user_id=user, metadata={"topic": "tea"})
    changed = client.put(f"/v1/memories/{memory['id']}", json={"text": "I like sencha.", "user_id": user}).json()
    assert (changed["id"], changed["version"], changed["event"]) == (memory["id"], 2, "UPDATE")
    assert changed["metadata"] == {"topic": "tea"}
    assert changed["updated_at"] > memory["updated_at"]
    body = {"content": "I like gyokuro.", "operation": "append", "metadata": {"topic": "teas"}, "user_id": user}
    appended = client.put(f"/v1/memories/{memory['id']}", json=body).json()
    assert (appended["memory"], appended["metadata"]) == ("I like sencha.\nI like gyokuro.", {"topic": "teas"})
    history = client.get(f"/v1/memories/{memory['id']}/history", params={"user_id": user}).json()["results"]
    assert [(change["event"], change["version"], change["actor"]) for change in history] == [
        ("ADD", 1, user),
        ("UPDATE", 2, user),
        ("UPDATE", 3, user),
    ]
    assert (history[1]["old_memory"], history[1]["new_memory"]) == ("I like oolong.", "I like sencha.")
    assert (history[0]["old_memory"], history[0]["new_memory"]) == (None, "I like oolong.")


def test_an_update_needs_a_text(client: httpx.Client, user: str) -> None:
    memory = add(client, text="I like oolong.", user_id=user)["id"]
    refusal(client.put(f"/v1/memories/{memory}", json={"user_id": user}), 400)
    refusal(client.put(f"/v1/memories/{memory}", json={"text": "", "user_id": user}), 400)
    refusal(client.put(f"/v1/memories/{memory}", json={"text": "x", "operation": "burn", "user_id": user}), 400)


def test_deleted_memories_are_gone(client: httpx.Client, user: str, other: str) -> None:
    first, second = (add(client, text=text, user_id=user)["id"] for text in ("one tea", "two teas"))
    add(client, text="other tea", user_id=other)
    assert client.delete(f"/v1/memories/{first}", params={"user_id": user}).json()["deleted"] == 1
    refusal(client.get(f"/v1/memories/{first}", params={"user_id": user}), 404)
    assert texts(client.post("/v1/memories/search", json={"query": "tea", "user_id": user})) == ["two teas"]
    assert client.delete("/v1/memories", params={"user_id": user}).json()["deleted"] == 1
    refusal(client.get(f"/v1/memories/{second}", params={"user_id": user}), 404)
    assert texts(client.get("/v1/memories", params={"user_id": user})) == []
    assert texts(client.get("/v1/memories", params={"user_id": other})) == ["other tea"]


def test_an_expired_memory_is_not_found_by_search(client: httpx.Client, user: str) -> None:
    add(client, text="Tea was cheap.", user_id=user, expires="2020-01-01")
    assert texts(client.post("/v1/memories/search", json={"query": "tea", "user_id": user})) == []


def test_health_tells_a_user_nothing_about_others(client: httpx.Client, user: str) -> None:
    assert client.get("/v1/memories/health", params={"user_id": user}).json() == {"status": "ok", "splice": False}


def test_health_tells_a_service_key_what_is_there(keyed_api: Server, user: str) -> None:
    with keyed_api.http(authorization=f"Bearer {SERVICE_KEY}") as client:
        before = client.get("/v1/memories/health").json()
        add(client, text="One more.", user_id=user)
        after = client.get("/v1/memories/health").json()
    assert after["vault"]["cubes"] == before["vault"]["cubes"] + 1
    with keyed_api.http(authorization=f"Bearer {KEYS['maya']}") as maya:
        assert "vault" not in maya.get("/v1/memories/health").json()


def test_the_api_describes_itself(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]["/v1/memories"]) == {"get", "post", "delete"}
    assert set(schema["paths"]["/v1/memories/{memory_id}"]) == {"get", "put", "patch", "delete"}
    assert schema["components"]["schemas"]["AddRequest"]["examples"]
    assert "404" in schema["paths"]["/v1/memories/{memory_id}"]["get"]["responses"]
