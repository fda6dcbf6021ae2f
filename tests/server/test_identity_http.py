"""API keys over HTTP: who gets in, and whose memory they reach."""

from __future__ import annotations

import http.client
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.server.conftest import KEYS, MODEL_NAME, SERVICE_KEY, Server

pytestmark = pytest.mark.server

MESSAGES: list[Any] = [{"role": "user", "content": "What tea do I like?"}]
CHAT: dict[str, Any] = {"model": MODEL_NAME, "messages": MESSAGES, "max_tokens": 2}
RESPONSE: dict[str, Any] = {"model": MODEL_NAME, "input": "What tea do I like?", "max_output_tokens": 2}
COMPLETION: dict[str, Any] = {"model": MODEL_NAME, "prompt": "Tea", "max_tokens": 2}
ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/messages", CHAT),
    ("POST", "/v1/messages/count_tokens", CHAT),
    ("POST", "/v1/responses", RESPONSE),
    ("POST", "/v1/completions", COMPLETION),
    ("POST", "/invocations", CHAT),
    ("POST", "/tokenize", COMPLETION),
    ("POST", "/inference/v1/generate", {"model": MODEL_NAME, "token_ids": [5], "sampling_params": {"max_tokens": 1}}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/memories", None),
    ("POST", "/v1/memories", {"text": "I like tea.", "user_id": "maya"}),
    ("DELETE", "/v1/memories", None),
    ("POST", "/v1/memories/search", {"query": "tea", "user_id": "maya"}),
    ("GET", "/v1/memories/0123456789abcdef0123456789abcdef", None),
    ("GET", "/no/such/route", None),
]


@pytest.fixture(scope="module", autouse=True)
def _memories(keyed_server: Server) -> None:
    for user, tea in (("maya", "oolong"), ("tom", "chai")):
        with keyed_server.http(authorization=f"Bearer {KEYS[user]}") as client:
            client.post("/v1/memories", json={"text": f"My favourite tea is {tea}."}).raise_for_status()


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[f"{method} {path}" for method, path, _ in ROUTES])
def test_every_route_needs_a_key(
    keyed_server: Server, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
) -> None:
    with keyed_server.http(**headers) as client:
        answer = client.request(method, path, json=body)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_websocket_needs_a_key_too(keyed_server: Server) -> None:
    host = keyed_server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    connection.request("GET", "/v1/realtime", headers={**upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    status = connection.getresponse().status
    connection.close()
    assert status == 403


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/metrics", "/openapi.json", "/v1/memories/health"])
def test_what_tells_nothing_of_memories_is_open(keyed_server: Server, path: str) -> None:
    with keyed_server.http() as client:
        assert client.get(path).status_code == 200


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_brings_its_own_users_memories(keyed_server: Server, header: str) -> None:
    for user, tea in (("maya", "oolong"), ("tom", "chai")):
        key = f"Bearer {KEYS[user]}" if header == "authorization" else KEYS[user]
        with keyed_server.http(**{header: key}) as client:
            memories = client.get("/v1/memories").json()["results"]
            chat = client.post("/v1/chat/completions", json=CHAT)
        assert [memory["memory"] for memory in memories] == [f"My favourite tea is {tea}."]
        assert chat.headers["x-memos-cubes"] == memories[0]["id"]


def test_unchanged_clients_bring_their_memories(keyed_server: Server) -> None:
    with keyed_server.http(authorization=f"Bearer {KEYS['maya']}") as client:
        (mine,) = (memory["id"] for memory in client.get("/v1/memories").json()["results"])
    with openai.OpenAI(base_url=f"{keyed_server.url}/v1", api_key=KEYS["maya"]) as chat_client:
        chat = chat_client.chat.completions.with_raw_response.create(**CHAT)
    with anthropic.Anthropic(base_url=keyed_server.url, api_key=KEYS["maya"]) as messages_client:
        message = messages_client.messages.with_raw_response.create(**CHAT)
    assert chat.headers["x-memos-cubes"] == message.headers["x-memos-cubes"] == mine


CLAIMS: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    ("POST", "/v1/chat/completions", {**CHAT, "user": "tom"}, {}),
    ("POST", "/v1/chat/completions", {**CHAT, "user_id": "tom"}, {}),
    ("POST", "/v1/chat/completions", CHAT, {"x-memos-user-id": "tom"}),
    ("POST", "/v1/chat/completions", CHAT, {"x-sm-user-id": "tom"}),
    ("POST", "/v1/chat/completions", {**CHAT, "user": "tom"}, {"x-memos-user-id": "maya"}),
    ("POST", "/v1/messages", {**CHAT, "user_id": "tom"}, {}),
    ("POST", "/v1/responses", {**RESPONSE, "user": "tom"}, {}),
    ("POST", "/invocations", {**CHAT, "user": "tom"}, {}),
    ("GET", "/v1/memories?user_id=tom", {}, {}),
    ("DELETE", "/v1/memories?user_id=tom", {}, {}),
    ("POST", "/v1/memories", {"text": "x", "user_id": "tom"}, {}),
    ("POST", "/v1/memories/search", {"query": "tea", "user_id": "tom"}, {}),
    ("POST", "/v1/memories/search", {"query": "tea", "filters": {"user_id": "tom"}}, {}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), CLAIMS)
def test_a_bound_key_cannot_speak_for_another(
    keyed_server: Server, method: str, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    with keyed_server.http(authorization=f"Bearer {KEYS['maya']}", **headers) as client:
        answer = client.request(method, path, json=body)
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"


def test_the_openai_client_sees_the_right_errors(keyed_server: Server) -> None:
    with keyed_server.openai(KEYS["maya"]) as client, pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(**CHAT, user="tom")
    with keyed_server.openai("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(**CHAT)


def test_a_bound_key_may_name_its_own_user(keyed_server: Server) -> None:
    with keyed_server.openai(KEYS["maya"]) as client:
        chat = client.chat.completions.with_raw_response.create(**CHAT, user="maya")
    assert chat.headers["x-memos-cubes"]


def test_a_service_key_speaks_for_whom_it_names(keyed_server: Server) -> None:
    ids = {}
    with keyed_server.http(authorization=f"Bearer {SERVICE_KEY}") as client:
        for user in KEYS:
            (memory,) = client.get("/v1/memories", params={"user_id": user}).json()["results"]
            chat = client.post("/v1/chat/completions", json={**CHAT, "user": user})
            assert chat.headers["x-memos-cubes"] == memory["id"]
            ids[user] = memory["id"]
        plain = client.post("/v1/chat/completions", json=CHAT)
    assert plain.status_code == 200
    assert "x-memos-cubes" not in plain.headers
    assert ids["maya"] != ids["tom"]


def test_a_key_does_not_reach_another_users_memory(keyed_server: Server) -> None:
    with keyed_server.http(authorization=f"Bearer {KEYS['tom']}") as client:
        (memory,) = (memory["id"] for memory in client.get("/v1/memories").json()["results"])
    with keyed_server.http(authorization=f"Bearer {KEYS['maya']}") as client:
        answers: list[httpx.Response] = [
            client.get(f"/v1/memories/{memory}"),
            client.get(f"/v1/memories/{memory}/history"),
            client.put(f"/v1/memories/{memory}", json={"text": "Mine."}),
            client.delete(f"/v1/memories/{memory}"),
        ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404]
