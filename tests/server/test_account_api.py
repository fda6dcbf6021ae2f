"""The plan of a prompt, the audit log, usage, and being forgotten, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from memos_vllm.governance.export import trace
from memos_vllm.governance.watermark import strip
from memos_vllm.vault import Vault
from tests.server.conftest import API_ONLY, KEYS, Server, running_server
from tests.server.test_life_api import found, put
from tests.server.test_memories_api import add, refusal, texts

pytestmark = pytest.mark.server


@pytest.fixture
def client(open_api: Server, user: str) -> Iterator[httpx.Client]:
    """Speaks for `user`."""
    with open_api.http(**{"x-memos-user-id": user}) as client:
        yield client


def test_a_plan_tells_what_a_prompt_would_be_given(client: httpx.Client) -> None:
    for text in ("My favourite tea is oolong.", "I live in Lisbon.", "oolong " * 2000):
        add(client, text=text)
    plan = client.post("/v1/memories/plan", json={"query": "Which tea is my favourite?"}).json()
    assert plan["chosen"][0]["memory"]["memory"] == "My favourite tea is oolong."
    assert plan["chosen"][0]["form"] == "text" and plan["chosen"][0]["why"]
    assert plan["tokens"] == sum(choice["tokens"] for choice in plan["chosen"]) <= plan["budget"]
    assert all(left["why"] for left in plan["left_out"])
    assert plan["considered"] >= len(plan["chosen"])
    refusal(client.post("/v1/memories/plan", json={"query": "tea", "policy": "dice"}), 400)


def test_the_log_tells_a_user_what_was_done_to_theirs(client: httpx.Client, open_api: Server, other: str) -> None:
    memory = add(client, text="My pin is a secret.")["id"]
    put(client, memory, text="My pin is no secret.")
    with open_api.http(**{"x-memos-user-id": other}) as stranger:
        add(stranger, text="Somebody else's.")
    client.delete(f"/v1/memories/{memory}")
    log = client.get("/v1/audit").json()
    assert [entry["action"] for entry in log["results"]] == ["add", "update", "delete"]
    assert {entry["target"] for entry in log["results"]} == {memory}
    assert "seq" not in log["results"][0] and "hash" not in log["results"][0], "numbers would count what others do"
    assert "secret" not in str(log)
    assert [entry["action"] for entry in client.get("/v1/audit", params={"action": "update"}).json()["results"]] == [
        "update"
    ]
    refusal(client.get("/v1/audit", params={"owner": other}), 403)
    refusal(client.get("/v1/audit/verify"), 403)


@pytest.mark.parametrize("newest_first", [False, True])
def test_the_log_comes_in_pages(client: httpx.Client, open_api: Server, other: str, newest_first: bool) -> None:
    ids = [add(client, text=f"fact {number}")["id"] for number in range(5)]
    seen: list[str] = []
    page = client.get("/v1/audit", params={"limit": 2, "newest_first": newest_first}).json()
    while True:
        seen += [entry["target"] for entry in page["results"]]
        if "next" not in page:
            break
        after = page["next"]
        page = client.get("/v1/audit", params={"limit": 2, "newest_first": newest_first, "after": after}).json()
    assert seen == (ids[::-1] if newest_first else ids)
    refusal(client.get("/v1/audit", params={"after": "7"}), 400)
    with open_api.http(**{"x-memos-user-id": other}) as stranger:
        refusal(stranger.get("/v1/audit", params={"after": after}), 400)


def test_an_export_leaves_redacted_and_marked(client: httpx.Client, open_api: Server, user: str, other: str) -> None:
    add(client, text="Ana's number is +351 912 345 678.", access=[other])
    add(client, text="I am ill.", sensitivity=["health"])
    add(client, text="old", expires="2020-01-01")
    open_api.remember(other, "Somebody else's.")
    answer = client.post("/v1/memories/export", json={"recipient": "doctor"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/x-ndjson")
    number, cubes = answer.headers["x-memos-export"], [json.loads(line) for line in answer.text.split("\n")[:-1]]
    assert [strip(cube["payload"]["content"]) for cube in cubes] == ["Ana's number is [phone].", "I am ill."]
    assert all(cube["meta"]["watermark"] == number and cube["meta"]["access"] == [] for cube in cubes)
    with Vault.open(open_api.memory_dir, readonly=True) as vault:
        found = trace(vault, f"They wrote {cubes[1]['payload']['content']}")
    assert {name: (entry.user, entry.recipient) for name, entry in found.items() if entry} == {number: (user, "doctor")}
    (entry,) = client.get("/v1/audit", params={"action": "export.put"}).json()["results"]
    assert (entry["actor"], entry["target"]) == (user, number)


def test_what_an_export_is_asked_for(client: httpx.Client) -> None:
    add(client, text="Write to ana@example.org.")
    add(client, text="I am ill.", sensitivity=["health"])
    asked = {"recipient": "doctor", "redact": False, "watermark": False, "clearance": []}
    (line,) = client.post("/v1/memories/export", json=asked).text.splitlines()
    assert json.loads(line)["payload"]["content"] == "Write to ana@example.org."
    assert "recipient" in refusal(client.post("/v1/memories/export", json={}), 400)
    refusal(client.post("/v1/memories/export", json={"recipient": "\0"}), 400)
    client.delete("/v1/memories")
    assert client.post("/v1/memories/export", json={"recipient": "doctor"}).content == b""


def test_usage_counts_ones_own(client: httpx.Client, user: str) -> None:
    assert client.get("/v1/me/usage").json()["cubes"] == 0
    add(client, text="One.")
    usage = client.get("/v1/me/usage").json()
    assert (usage["user_id"], usage["cubes"], usage["max_cubes"]) == (user, 1, None)
    assert usage["bytes"] > 0


def test_somebody_forgotten_has_left_no_trace(client: httpx.Client, open_api: Server, user: str, other: str) -> None:
    memory = add(client, text="I row on Sundays.", access=[other])["id"]
    put(client, memory, text="I row on Mondays.")
    client.post("/v1/snapshots", json={"name": "mine"})
    with open_api.http(**{"x-memos-user-id": other}) as stranger:
        shared = add(stranger, text="We row together.", access=[user])["id"]
        report = client.delete("/v1/me").json()
        assert (report["deleted"]["cubes"], report["deleted"]["snapshots"]) == (1, 1)
        assert not any(report["traces"].values())
        assert texts(client.get("/v1/memories")) == found(client, "row") == []
        refusal(client.get(f"/v1/memories/{shared}"), 404)
        assert found(stranger, "row") == ["We row together."]
        assert user not in stranger.get("/v1/audit").text
    with Vault.open(open_api.memory_dir, readonly=True) as vault:
        assert not any(vault.traces_of(user).values())


def test_quotas_are_clear_answers(tmp_path: Path) -> None:
    flags = ("--memory-quota-cubes", "2", "--memory-quota-rps", "3")
    with running_server(tmp_path, *flags, program=API_ONLY) as server:
        with server.http(**{"x-memos-user-id": "maya"}) as maya:
            assert [maya.post("/v1/memories", json={"text": text}).status_code for text in ("a", "b", "c")] == [
                200,
                200,
                413,
            ]
            answers = [maya.get("/v1/me/usage") for _ in range(20)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert int(limited[0].headers["retry-after"]) >= 1
        assert limited[0].json()["error"]["type"] == "rate_limit_error"


def test_a_bound_key_forgets_its_own_user_only(keyed_api: Server) -> None:
    with keyed_api.http(authorization=f"Bearer {KEYS['maya']}") as maya:
        refusal(maya.delete("/v1/me", params={"user_id": "tom"}), 403)
