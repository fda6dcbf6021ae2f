"""Plans over HTTP: which memories a prompt would get, under which policy, and why not the others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Server

pytestmark = pytest.mark.server


def plan(server: Server, user: str, query: str, **more: Any) -> dict[str, Any]:
    with server.http() as client:
        answer = client.post("/v1/memories/plan", json={"query": query, "user_id": user, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chosen(body: dict[str, Any]) -> list[str]:
    return [choice["memory"]["id"] for choice in body["chosen"]]


def test_a_plan_tells_what_is_chosen_and_what_is_left_out_and_why(open_api: Server, user: str, other: str) -> None:
    tea, dog = open_api.remember(user, "My favourite tea is oolong.", "My dog likes tea.")
    (long,) = open_api.remember(user, "tea " * 1500)
    open_api.remember(other, "Tea of somebody else.")
    body = plan(open_api, user, "Which tea is my favourite?")
    assert chosen(body) == [tea, dog]
    best = body["chosen"][0]
    assert best["score"] == best["parts"]["relevance"] == 1.0
    assert best["form"] == "text" and best["tokens"] > 0 and best["why"]
    (left,) = body["left_out"]
    assert left["id"] == long and left["why"].startswith("takes ")
    assert body["considered"] == 3 and body["policy"] == "semantic"
    assert body["tokens"] == sum(choice["tokens"] for choice in body["chosen"]) <= body["budget"]


def test_asking_for_a_plan_uses_nothing(open_api: Server, user: str) -> None:
    (tea,) = open_api.remember(user, "My favourite tea is oolong.")
    assert plan(open_api, user, "tea?") == plan(open_api, user, "tea?")
    with open_api.http() as client:
        memory = client.get(f"/v1/memories/{tea}", params={"user_id": user}).json()
    assert memory["state"] == "generated"


def test_the_policy_decides_the_scores(open_api: Server, user: str) -> None:
    plain, pinned = open_api.remember(user, "My favourite tea is oolong tea.", "Tea stains.")
    with open_api.http() as client:
        client.post(f"/v1/memories/{pinned}/pin", params={"user_id": user}).raise_for_status()
    scores = {}
    for policy in ("semantic", "priority"):
        body = plan(open_api, user, "Which is my favourite tea?", policy=policy)
        assert body["policy"] == policy
        scores[policy] = {choice["memory"]["id"]: choice["score"] for choice in body["chosen"]}
    assert scores["semantic"][plain] > scores["semantic"][pinned]
    assert scores["priority"][plain] < scores["priority"][pinned]


def test_an_unknown_policy_is_refused(open_api: Server, user: str) -> None:
    with open_api.http() as client:
        answer = client.post("/v1/memories/plan", json={"query": "tea", "user_id": user, "policy": "mru"})
    assert answer.status_code == 400 and "there are semantic, lru" in answer.json()["error"]["message"]
