"""Rights that change while a request waits, and keys that are not cleared for everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from memos_vllm.cube import MemCube, Right
from memos_vllm.governance import keys, quota
from memos_vllm.governance.directory import MAX_AGE
from memos_vllm.governance.quota import Quota
from memos_vllm.vault import Vault
from memos_vllm.vault.pipeline import EditStep, GrantStep, Step
from tests.server.conftest import SERVICE_KEY, Server

pytestmark = pytest.mark.server

WAITS = 0.5
"""Seconds in which a request gets as far as the vault's lock."""
DELICATE = "My blood pressure medicine is in the drawer."
OPEN = "My pressure cooker is in the drawer."


@dataclass(frozen=True)
class Rights:
    """A server, its vault, and a service key that is cleared for nothing delicate."""

    server: Server
    vault: Vault
    limited: str

    def http(self, user: str, *, limited: bool = False, role: str = "") -> httpx.Client:
        key = role or (self.limited if limited else SERVICE_KEY)
        return self.server.http(**{"authorization": f"Bearer {key}", "x-memos-user-id": user})

    def add(self, user: str, text: str, **fields: Any) -> str:
        with self.http(user) as client:
            answer = client.post("/v1/memories", json={"text": text, **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["results"][0]["id"])

    def overtaken(self, step: Step, owner: str, request: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer to a request that comes before `step` is stored, and that is about to store when it is."""
        asked: list[Future[httpx.Response]] = []

        def meanwhile(cube: MemCube, step: Step) -> None:
            if not asked:
                asked.append(pool.submit(request))
                time.sleep(WAITS)

        with ThreadPoolExecutor(1) as pool:
            self.vault.pipeline([step], actor=owner, permit=meanwhile)
            return asked[0].result()


@pytest.fixture(scope="module")
def rights(keyed_api: Server) -> Iterator[Rights]:
    with Vault.open(keyed_api.memory_dir) as vault:
        _, key = keys.create(vault, clearance=["work"], actor="operator:test")
        time.sleep(MAX_AGE * 1.2)
        yield Rights(keyed_api, vault, key)


WRITES: dict[str, tuple[str, str, Any]] = {
    "text": ("PUT", "", {"text": "Mine."}),
    "mem0": ("PUT", "/", {"text": "Mine."}),
    "rollback": ("POST", "/rollback", {"version": 1}),
}
OWNER_WRITES: dict[str, tuple[str, str, Any]] = {
    **WRITES,
    "text and expiry": ("PUT", "", {"text": "Mine.", "expiration_date": "2090-01-01"}),
    "metadata": ("PUT", "", {"metadata": {"colour": "red"}}),
    "tags": ("PATCH", "", {"tags": ["red"]}),
    "state": ("PUT", "/state", {"state": "archived"}),
    "pin": ("POST", "/pin", None),
    "unpin": ("DELETE", "/pin", None),
    "access": ("PUT", "/access", {"access": ["eve"]}),
    "delete": ("DELETE", "", None),
}


def prepared(rights: Rights, owner: str, name: str) -> str:
    """A memory in its second version."""
    cube = rights.add(owner, "The first text.")
    rights.vault.update(cube, "The second text.", actor=owner)
    if name == "unpin":
        rights.vault.prioritise(cube, "pinned")
    return cube


@pytest.mark.parametrize("name", WRITES)
def test_a_right_that_is_revoked_first_lets_no_change_through(rights: Rights, user: str, other: str, name: str) -> None:
    cube, (method, path, body) = prepared(rights, user, name), WRITES[name]
    granted = GrantStep(cube, other, ("read", "write"))
    with rights.http(other) as client:

        def request() -> httpx.Response:
            return client.request(method, f"/v1/memories/{cube}{path}", json=body)

        rest: tuple[Right, ...]
        for rest, status in ((("read",), 403), ((), 404)):
            rights.vault.pipeline([granted], actor=user)
            refused = rights.overtaken(GrantStep(cube, other, rest), user, request)
            assert refused.status_code == status and rights.vault.get(cube).version == 2
        rights.vault.pipeline([granted], actor=user)
        unharmed = rights.overtaken(GrantStep(cube, "somebody", ("read",)), user, request)
        assert unharmed.status_code == 200 and rights.vault.get(cube).version == 3


@pytest.mark.parametrize("name", OWNER_WRITES)
def test_what_becomes_delicate_first_is_changed_by_no_key_without_clearance(
    rights: Rights, user: str, name: str
) -> None:
    cube, (method, path, body) = prepared(rights, user, name), OWNER_WRITES[name]
    with rights.http(user, limited=True) as client:

        def request() -> httpx.Response:
            return client.request(method, f"/v1/memories/{cube}{path}", json=body)

        before = rights.vault.get(cube)
        refused = rights.overtaken(EditStep(cube, sensitivity=("health",)), user, request)
        assert refused.status_code == 404, refused.text
        after = rights.vault.get(cube)
        assert (after.payload, after.version, after.header.state) == (before.payload, 2, "generated")
        assert (after.header.priority, after.header.expires, after.header.access, after.header.tags) == (
            before.header.priority,
            "",
            (),
            (),
        )
        assert not after.header.metadata
        rights.vault.edit(cube, actor=user, sensitivity=())
        assert rights.overtaken(EditStep(cube, tags=("blue",)), user, request).status_code == 200


def test_text_and_expiry_come_together(rights: Rights, user: str) -> None:
    cube = rights.add(user, "The shop opens at nine.")
    with rights.http(user) as client:
        body = {"text": "The shop opens at ten.", "expiration_date": "2090-01-01"}
        changed = client.put(f"/v1/memories/{cube}", json=body).json()
        assert (changed["version"], changed["expires"]) == (2, "2090-01-01")
        entries = client.get("/v1/audit", params={"target": cube}).json()["results"]
    assert [entry["action"] for entry in entries] == ["add", "update"]


def test_the_log_tells_a_key_only_of_what_it_is_cleared_for(rights: Rights, user: str) -> None:
    delicate, plain = rights.add(user, DELICATE, sensitivity=["health"]), rights.add(user, OPEN)
    gone = rights.add(user, "An old note.", sensitivity=["health"])
    rights.vault.delete(gone, actor=user)
    rights.vault.snapshot(user, "before", actor=user)
    with rights.http(user) as full, rights.http(user, limited=True) as limited:

        def log(client: httpx.Client, **query: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = client.get("/v1/audit", params=query).json()["results"]
            return found

        assert {delicate, plain, gone} <= {entry["target"] for entry in log(full)}
        entries = log(limited)
        assert {entry["target"] for entry in entries} == {plain, "before"}
        assert [entry["detail"] for entry in entries if entry["action"] == "snapshot"] == [{}]
        assert log(limited, target=delicate) == log(limited, target=gone) == []
        assert log(limited, newest_first=True) == entries[::-1]
        rights.vault.edit(delicate, actor=user, sensitivity=("work",))
        assert delicate in {entry["target"] for entry in log(limited)}


def test_pages_of_the_log_are_full_for_a_key_that_does_not_see_all_of_it(rights: Rights, user: str) -> None:
    ids = [rights.add(user, f"Note {n}.", sensitivity=["health"] if n % 2 else []) for n in range(8)]
    found: list[str] = []
    after: str | None = ""
    with rights.http(user, limited=True) as client:
        while after is not None:
            page = client.get("/v1/audit", params={"limit": 2, "after": after}).json()
            found += [entry["target"] for entry in page["results"]]
            after = page.get("next")
    assert found == ids[::2]


def test_an_auditors_key_without_clearance_reads_of_no_delicate_memory(rights: Rights, user: str) -> None:
    _, key = keys.create(rights.vault, user=f"{user}-ada", roles=["auditor"], clearance=[], actor="operator:test")
    delicate, plain = rights.add(user, DELICATE, sensitivity=["health"]), rights.add(user, OPEN)
    time.sleep(MAX_AGE * 1.2)
    with rights.http(f"{user}-ada", role=key) as client:
        targets = {entry["target"] for entry in client.get("/v1/audit", params={"owner": user}).json()["results"]}
        assert plain in targets and delicate not in targets
        assert "vault" not in client.get("/v1/memories/health").json()


def test_counts_are_of_what_a_key_is_cleared_for(rights: Rights, user: str) -> None:
    rights.add(user, OPEN)
    with rights.http(user, limited=True) as client:

        def counted() -> list[Any]:
            usage, entities = client.get("/v1/me/usage").json(), client.get("/v1/entities/").json()
            return [usage, entities, client.get("/v1/snapshots").json()]

        rights.vault.snapshot(user, "before", actor=user)
        with rights.http(user) as full:
            assert counted()[0] == full.get("/v1/me/usage").json()
        before = counted()
        delicate = rights.add(user, DELICATE, sensitivity=["health"])
        rights.vault.update(delicate, f"{DELICATE} Twice a day.", actor=user)
        assert counted() == before
        taken = client.post("/v1/snapshots", json={"name": "after"}).json()
        assert taken["memories"] == 1 and taken["bytes"] == before[2]["results"][0]["bytes"]
        full_row = rights.vault.snapshots(user)[1]
        assert full_row.cubes == 2 and full_row.bytes > taken["bytes"]


def test_a_full_quota_does_not_tell_a_key_how_much_there_is(rights: Rights, user: str) -> None:
    quota.put(rights.vault, user, Quota(cubes=1), actor="operator:test")
    time.sleep(MAX_AGE * 1.2)
    rights.add(user, DELICATE, sensitivity=["health"])
    with rights.http(user, limited=True) as client:
        refused = client.post("/v1/memories", json={"text": OPEN})
    assert refused.status_code == 413 and "has 1" not in refused.text


def test_a_restore_leaves_alone_what_a_key_is_not_cleared_for(rights: Rights, user: str) -> None:
    """Changed, deleted or made since: delicate memories stay as they are, also such that were delicate then."""
    tags = {"health": ["health"], "open": []}
    changed = {name: rights.add(user, f"Changed {name}.", sensitivity=some) for name, some in tags.items()}
    deleted = {name: rights.add(user, f"Deleted {name}.", sensitivity=some) for name, some in tags.items()}
    calmed, woken = rights.add(user, "Calmed.", sensitivity=["health"]), rights.add(user, "Woken.")
    rights.vault.snapshot(user, "then", actor=user)
    for cube in (*changed.values(), calmed, woken):
        rights.vault.update(cube, "Another text.", actor=user)
    rights.vault.edit(calmed, actor=user, sensitivity=())
    rights.vault.edit(woken, actor=user, sensitivity=("health",))
    for cube in deleted.values():
        rights.vault.delete(cube, actor=user)
    newer = {name: rights.add(user, f"Newer {name}.", sensitivity=some) for name, some in tags.items()}
    with rights.http(user, limited=True) as client:
        done = client.post("/v1/snapshots/then/restore").json()
        ids = {kind: [memory["id"] for memory in done[kind]] for kind in ("results", "revived", "archived")}
        assert ids == {"results": [changed["open"]], "revived": [deleted["open"]], "archived": [newer["open"]]}
        assert done["unchanged"] == 0
        assert client.delete("/v1/snapshots/then").status_code == 403
    texts = {cube.id: (cube.text, cube.header.state) for cube in rights.vault.list(user)}
    assert texts == {
        changed["open"]: ("Changed open.", "generated"),
        changed["health"]: ("Another text.", "generated"),
        deleted["open"]: ("Deleted open.", "generated"),
        calmed: ("Another text.", "generated"),
        woken: ("Another text.", "generated"),
        newer["open"]: ("Newer open.", "archived"),
        newer["health"]: ("Newer health.", "generated"),
    }
    with rights.http(user) as client:
        done = client.post("/v1/snapshots/then/restore").json()
    assert {memory["id"] for memory in done["results"]} == {changed["health"], calmed, woken}
    assert [memory["id"] for memory in done["revived"]] == [deleted["health"]]
