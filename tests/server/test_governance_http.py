"""Keys, groups, roles, clearance and quotas of a vault, changed by the commands while a server uses it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from memos_vllm.cube import MemCube
from memos_vllm.governance import groups, keys, quota
from memos_vllm.governance.quota import Quota
from memos_vllm.server.middleware import READING, writes_memory
from memos_vllm.server.routes import router
from memos_vllm.server.routes.mem0 import WRITES
from memos_vllm.vault import LogQuery, Vault
from tests.server.conftest import API_ONLY, Server, running_server

pytestmark = pytest.mark.server

SEEN_AFTER = 3.0
"""Seconds; a server looks at the registry twice a second."""


@dataclass(frozen=True)
class Governed:
    """A server with its vault, opened by this process too, and a key for each name."""

    server: Server
    vault: Vault
    keys: Mapping[str, str]

    def http(self, name: str, **headers: str) -> httpx.Client:
        return self.server.http(authorization=f"Bearer {self.keys[name]}", **headers)

    def add(self, name: str, text: str, **fields: Any) -> str:
        with self.http(name) as client:
            answer = client.post("/v1/memories", json={"text": text, **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["results"][0]["id"])

    def found(self, name: str, query: str) -> list[str]:
        with self.http(name) as client:
            answer = client.post("/v1/memories/search", json={"query": query})
        assert answer.status_code == 200, answer.text
        return [memory["memory"] for memory in answer.json()["results"]]

    def get(self, name: str, path: str) -> httpx.Response:
        with self.http(name) as client:
            return client.get(path)


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    folder: Path = tmp_path_factory.mktemp("governed")
    vault = Vault.open(folder / "memory")

    def key(**options: Any) -> str:
        return keys.create(vault, actor="operator:test", **options)[1]

    made = {name: key(user=name) for name in ("maya", "bo", "cy", "eli", "fay", "busy", "small")}
    made["maya-uncleared"] = key(user="maya", clearance=["work"])
    made["fay-uncleared"] = key(user="fay", clearance=["work"])
    made["maya-reader"] = key(user="maya", roles=["reader"])
    made["service"] = key()
    made["auditor"] = key(user="ada", roles=["auditor"])
    groups.add(vault, "staff", ["maya", "bo"], actor="operator:test")
    quota.put(vault, "busy", Quota(rps=0.5), actor="operator:test")
    quota.put(vault, "small", Quota(cubes=2), actor="operator:test")
    flags = ("--memory-audit", "access", "--memory-quota-mib", "1")
    with running_server(folder, *flags, program=API_ONLY) as server:
        yield Governed(server, vault, made)
    vault.close()


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within SEEN_AFTER."""
    deadline = time.monotonic() + SEEN_AFTER
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return holds()


def test_a_vault_with_keys_needs_one(governed: Governed) -> None:
    with governed.server.http() as client:
        assert client.get("/v1/memories", params={"user_id": "maya"}).status_code == 401
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").status_code == 200
        wrong = {"authorization": f"Bearer {governed.keys['maya'][:-2]}xx"}
        assert client.get("/v1/memories", headers=wrong).status_code == 401
        assert client.get("/v1/memories", headers={"x-api-key": governed.keys["maya"]}).status_code == 200
        token = {"authorization": f"Token {governed.keys['maya']}"}
        assert client.get("/v1/memories", headers=token).status_code == 200


def test_a_key_is_made_and_revoked_while_serving(governed: Governed) -> None:
    key_id, key = keys.create(governed.vault, user="dora", actor="operator:test")
    with governed.server.http(authorization=f"Bearer {key}") as client:
        assert soon(lambda: client.get("/v1/memories").status_code == 200)
        keys.revoke(governed.vault, key_id, actor="operator:test")
        assert soon(lambda: client.get("/v1/memories").status_code == 401)
        assert "revoked" in client.get("/v1/memories").json()["error"]["message"]


def test_a_key_binds(governed: Governed) -> None:
    with governed.http("maya") as client:
        answer = client.get("/v1/memories", params={"user_id": "bo"})
    assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("name", ["group:staff", "operator:root", "memos-vllm"])
def test_nobody_is_a_group_or_an_operator(governed: Governed, name: str) -> None:
    with governed.http("service") as client:
        answer = client.post("/v1/memories/search", json={"query": "tea", "user_id": name})
    assert answer.status_code == 400


def test_a_group_reads_what_is_shared_with_it(governed: Governed) -> None:
    memory = governed.add("cy", "The spare key hangs behind the boiler.", access=["group:staff"])
    text = "The spare key hangs behind the boiler."
    assert governed.found("bo", "spare key boiler") == [text]
    assert governed.get("bo", f"/v1/memories/{memory}").json()["memory"] == text
    assert governed.found("busy", "spare key boiler") == []
    with governed.http("bo") as client:
        assert client.put(f"/v1/memories/{memory}", json={"text": "Mine."}).status_code == 403
        assert client.delete(f"/v1/memories/{memory}").status_code == 403
    groups.remove(governed.vault, "staff", ["bo"], actor="operator:test")
    assert soon(lambda: governed.found("bo", "spare key boiler") == [])
    assert governed.get("bo", f"/v1/memories/{memory}").status_code == 404
    assert governed.found("maya", "spare key boiler") == [text]
    groups.add(governed.vault, "staff", ["bo"], actor="operator:test")
    assert soon(lambda: governed.found("bo", "spare key boiler") == [text])


def test_a_group_that_may_write(governed: Governed) -> None:
    memory = governed.add("cy", "The rota: Monday Ana.")
    with governed.http("cy") as client:
        share = {"principal": "group:staff", "rights": ["read", "write"]}
        assert client.post(f"/v1/memories/{memory}/access", json=share).status_code == 200
    with governed.http("maya") as client:
        assert client.put(f"/v1/memories/{memory}", json={"text": "The rota: Monday Rui."}).status_code == 200
        assert client.delete(f"/v1/memories/{memory}").status_code == 403
    assert governed.found("bo", "rota Monday") == ["The rota: Monday Rui."]


def test_a_question_about_the_team_is_answered_from_the_groups_memories(governed: Governed) -> None:
    """Not from what single others share with the group, or with the caller: that would put words into their prompts."""
    (cube,) = governed.vault.add([MemCube.plaintext("The team meets on Tuesdays.", owner="group:staff")], actor="maya")
    governed.add("cy", "Every team meets on Sundays.", access=["group:staff", "eli"])

    def chosen(name: str, query: str) -> list[str]:
        with governed.http(name) as client:
            answer = client.post("/v1/memories/plan", json={"query": query}).json()
        return [choice["memory"]["memory"] for choice in answer["chosen"]]

    assert chosen("bo", "When does our team meet?") == ["The team meets on Tuesdays."]
    assert "The team meets on Tuesdays." not in chosen("bo", "When do I meet on Tuesdays?")
    assert chosen("eli", "When does our team meet?") == []
    governed.vault.delete(cube.id, actor="maya")


def test_an_export_holds_what_the_key_is_cleared_for(governed: Governed) -> None:
    governed.add("fay", "I am ill.", sensitivity=["health"])
    governed.add("fay", "Tea at five.", sensitivity=["work"])

    def exported(name: str, **asked: Any) -> list[str]:
        with governed.http(name) as client:
            answer = client.post("/v1/memories/export", json={"recipient": "doctor", "watermark": False, **asked})
        return [json.loads(line)["payload"]["content"] for line in answer.text.splitlines()]

    assert {"I am ill.", "Tea at five."} <= set(exported("fay"))
    for asked in ({}, {"clearance": ["health", "work"]}):
        texts = exported("fay-uncleared", **asked)
        assert "Tea at five." in texts and "I am ill." not in texts
    assert "Tea at five." not in exported("fay-uncleared", clearance=["health"])
    with governed.http("maya-reader") as client:
        assert client.post("/v1/memories/export", json={"recipient": "doctor"}).status_code == 403
    with governed.http("fay") as client:
        client.delete("/v1/memories").raise_for_status()


def test_what_a_member_does_with_a_groups_memory_is_told_of_them(governed: Governed) -> None:
    (cube,) = governed.vault.add([MemCube.plaintext("The shed key.", owner="group:staff")], actor="maya")
    with governed.http("maya") as client:
        assert client.post(f"/v1/memories/{cube.id}/pin").status_code == 200
    assert [entry.actor for entry in governed.vault.log(LogQuery(target=cube.id, action="edit"))] == ["maya"]


def test_a_key_sees_only_what_it_is_cleared_for(governed: Governed) -> None:
    secret = governed.add("maya", "My blood pressure medicine is in the drawer.", sensitivity=["health"])
    open_one = governed.add("maya", "My pressure cooker is in the drawer.", sensitivity=["work"])
    both = {"My blood pressure medicine is in the drawer.", "My pressure cooker is in the drawer."}
    assert set(governed.found("maya", "pressure drawer")) == both
    assert governed.found("maya-uncleared", "pressure drawer") == ["My pressure cooker is in the drawer."]
    assert governed.get("maya-uncleared", f"/v1/memories/{secret}").status_code == 404
    assert governed.get("maya-uncleared", f"/v1/memories/{secret}/history").status_code == 404
    assert governed.get("maya-uncleared", f"/v1/memories/{open_one}").status_code == 200
    for path in ("/v1/memories", "/v1/memories/", "/v1/memories?limit=1", "/v1/memories?as_of=2100-01-01"):
        listed = governed.get("maya-uncleared", path)
        assert listed.status_code == 200 and secret not in listed.text and open_one in listed.text
    with governed.http("maya-uncleared") as client:
        plan = client.post("/v1/memories/plan", json={"query": "pressure drawer"})
        assert plan.status_code == 200 and secret not in plan.text and open_one in plan.text


def test_a_prompt_names_only_what_the_key_is_cleared_for(governed: Governed) -> None:
    secret = governed.add("maya", "The biopsy is on Monday.", sensitivity=["health"])
    open_one = governed.add("maya", "The tram leaves at nine.", sensitivity=["work"])
    with governed.http("maya-uncleared") as client:

        def named(memory: str) -> str:
            return client.post("/v1/chat/completions", json={"messages": []}, headers={"x-memos-cubes": memory}).text

        assert "There is no memory" in named(secret) and "There is no memory" not in named(open_one)


def test_no_word_of_a_memory_can_be_tested_without_clearance(governed: Governed) -> None:
    governed.add("fay", "Is it booked?", run_id="call", sensitivity=["work"])
    governed.add("fay", "The biopsy is on Monday.", run_id="call", sensitivity=["health"])

    def asked(word: str) -> list[tuple[str, float, dict[str, float]]]:
        with governed.http("fay-uncleared") as client:
            found = client.post("/v1/memories/search", json={"query": word}).json()["results"]
        return [(memory["memory"], memory["score"], memory["parts"]) for memory in found]

    assert asked("biopsy") == asked("tombola") == [("Is it booked?", 0.0, {})]


def test_clearance_is_for_every_version_and_for_what_a_memory_is_now(governed: Governed) -> None:
    drug = governed.add("maya", "I take lithium.")
    tram = governed.add("maya", "I take the tram to the clinic.", sensitivity=["health"])
    between = datetime.now(UTC).isoformat()
    with governed.http("maya") as client:
        client.put(f"/v1/memories/{drug}", json={"text": "I take what I take."})
        client.patch(f"/v1/memories/{drug}", json={"sensitivity": ["health"]})
        client.put(f"/v1/memories/{tram}", json={"text": "I take the tram."})
        client.patch(f"/v1/memories/{tram}", json={"sensitivity": []})
        assert "lithium" in client.get("/v1/memories", params={"as_of": between, "limit": 1000}).text
        assert "clinic" in client.get(f"/v1/memories/{tram}/history").text
    with governed.http("maya-uncleared") as client:
        for path in ("versions", "history", "provenance"):
            assert client.get(f"/v1/memories/{drug}/{path}").status_code == 404
            open_part = client.get(f"/v1/memories/{tram}/{path}")
            assert open_part.status_code == 200 and "clinic" not in open_part.text
        assert client.post(f"/v1/memories/{tram}/rollback", json={"version": 1}).status_code == 404
        then = client.get("/v1/memories", params={"as_of": between, "limit": 1000}).text
        assert "lithium" not in then and "clinic" not in then
        assert client.delete("/v1/me").status_code == 403
        client.delete("/v1/memories")
    assert governed.get("maya", f"/v1/memories/{tram}").status_code == 404
    assert governed.get("maya", f"/v1/memories/{drug}").status_code == 200


def test_the_past_comes_in_pages_too(governed: Governed) -> None:
    for number in range(3):
        governed.add("eli", f"note {number}", run_id=f"run {number % 2}")
    now = {"as_of": "2100-01-01"}

    def listed(**query: Any) -> list[str]:
        with governed.http("eli") as client:
            answer = client.get("/v1/memories", params={**now, **query})
        return [memory["memory"] for memory in answer.json()["results"]]

    assert listed(limit=2) == ["note 0", "note 1"]
    assert listed(run_id="run 0", limit=2) == ["note 0", "note 2"]


def test_a_readers_key_changes_nothing(governed: Governed) -> None:
    memory = governed.add("maya", "I take the early tram.")
    with governed.http("maya-reader") as client:
        assert client.get(f"/v1/memories/{memory}").status_code == 200
        assert client.post("/v1/memories/search", json={"query": "tram"}).status_code == 200
        assert client.post("/v1/memories/plan", json={"query": "tram"}).status_code == 200
        refused = [
            client.post("/v1/memories", json={"text": "x"}),
            client.put(f"/v1/memories/{memory}", json={"text": "x"}),
            client.delete(f"/v1/memories/{memory}"),
            client.delete("/v1/memories"),
            client.delete("/v1/me"),
            client.post(f"/v1/memories/{memory}/pin"),
            client.post("/v1/snapshots", json={"name": "x"}),
            client.post("/v1/pipelines", json={"steps": []}),
            client.post("/v1/chat/completions", json={"messages": []}, headers={"x-memos-mode": "readwrite"}),
        ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert governed.get("maya", f"/v1/memories/{memory}").json()["version"] == 1


def test_every_route_that_writes_is_closed_to_readers() -> None:
    """A route of ours that is neither a read nor guarded would let a reader's key write."""
    open_to_readers = {
        (method, route.path)
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in (route.methods or set()) - {"GET", "HEAD", "OPTIONS"}
        if not writes_memory(method, route.path) and WRITES[0] not in route.dependencies
    }
    reads = {("POST", path + slash) for path in READING for slash in ("", "/")}
    mem0s = {("POST", f"/v{version}/memories/{part}") for version in (2, 3) for part in ("", "search/")}
    assert open_to_readers - reads <= mem0s


@pytest.mark.parametrize("name", ["plan", "search", "verify"])
def test_the_name_of_a_snapshot_makes_no_read_of_a_write(name: str) -> None:
    for method, path in (("DELETE", f"/v1/snapshots/{name}"), ("POST", f"/v1/snapshots/{name}/restore")):
        assert writes_memory(method, path) and writes_memory(method, f"{path}/")
    assert writes_memory("DELETE", "/v1/memories/plan") and writes_memory("PUT", "/v1/memories/search/")


def test_too_many_requests(governed: Governed) -> None:
    while (refused := governed.get("busy", "/v1/memories")).status_code == 200:
        pass  # the first of them, or more where they take as long as the limit
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    time.sleep(int(refused.headers["retry-after"]))
    assert governed.get("busy", "/v1/memories").status_code == 200
    assert governed.get("maya", "/v1/memories").status_code == 200


def test_too_many_memories(governed: Governed) -> None:
    governed.add("small", "one")
    with governed.http("small") as client:
        both = client.post("/v1/memories", json={"messages": [{"role": "user", "content": text} for text in "ab"]})
        assert both.status_code == 413
        assert "may have 2 memories, has 1" in both.json()["error"]["message"]
        assert len(client.get("/v1/memories").json()["results"]) == 1
        assert client.get("/v1/me/usage").json()["max_cubes"] == 2
        assert client.post("/v1/memories", json={"text": "two"}).status_code == 200
        assert client.post("/v1/memories", json={"text": "three"}).status_code == 413
        assert client.delete("/v1/memories").json()["deleted"] == 2
        assert client.post("/v1/memories", json={"text": "again"}).status_code == 200


def test_who_may_write_does_not_learn_the_owners_usage(governed: Governed) -> None:
    memory = governed.add("cy", "x" * 300_000)
    with governed.http("cy") as client:
        share = {"principal": "maya", "rights": ["read", "write"]}
        assert client.post(f"/v1/memories/{memory}/access", json=share).status_code == 200
    with governed.http("maya") as client:
        assert client.put(f"/v1/memories/{memory}", json={"text": "y" * 300_000}).status_code == 200
        refused = client.put(f"/v1/memories/{memory}", json={"text": "z" * 300_000})
    assert refused.status_code == 413
    assert refused.json()["error"]["message"] == "'cy' has no room for this: their quota of memories is used up."
    with governed.http("cy") as client:
        refused = client.post("/v1/memories", json={"text": "z" * 300_000})
        assert refused.status_code == 413 and "may have 1 MiB" in refused.json()["error"]["message"]
        client.delete(f"/v1/memories/{memory}")


def test_looks_at_memories_of_others_are_recorded(governed: Governed) -> None:
    memory = governed.add("cy", "The alarm code is on the fridge.", access=["maya"])
    assert governed.found("maya", "alarm code fridge")
    assert governed.get("maya", f"/v1/memories/{memory}").status_code == 200
    with governed.http("maya") as client:
        assert client.delete(f"/v1/memories/{memory}").status_code == 403

    def recorded() -> set[str]:
        return {entry.action for entry in governed.vault.log(LogQuery(actor="maya", target=memory))}

    assert soon(lambda: recorded() == {"search", "read", "refuse"})
    with governed.http("cy") as client:
        log = client.get("/v1/audit", params={"target": memory}).json()["results"]
    assert {"add", "search", "read"} <= {entry["action"] for entry in log}
    assert governed.vault.verify_log() == []


def test_a_forgotten_user_leaves_no_access_behind(governed: Governed) -> None:
    _, key = keys.create(governed.vault, user="eve", actor="operator:test")
    memory = governed.add("cy", "The garage opens on Friday.", access=["eve"])
    with governed.server.http(authorization=f"Bearer {key}") as client:
        assert soon(lambda: client.get(f"/v1/memories/{memory}").status_code == 200)
        assert client.delete("/v1/me").status_code == 200
    time.sleep(1.5)  # what waited for the audit log would have been written by now
    assert sum(governed.vault.traces_of("eve").values()) == 0


def test_an_auditor_reads_the_whole_log(governed: Governed) -> None:
    governed.add("cy", "Something to record.")
    assert governed.get("auditor", "/v1/audit/verify").json()["ok"] is True
    log = governed.get("auditor", "/v1/audit?action=add&newest_first=true").json()["results"]
    assert "cy" in {entry["owner"] for entry in log}
    assert governed.get("maya", "/v1/audit/verify").status_code == 403
    mine = governed.get("maya", "/v1/audit").json()["results"]
    assert {entry["owner"] for entry in mine} <= {"maya"}
    assert governed.keys["maya"] not in json.dumps(mine)
