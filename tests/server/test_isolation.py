"""Twenty tenants on one server: whatever they do, nobody sees text, ids, names, counts or scores of another."""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from memos_vllm.cube import new_id
from tests.server.conftest import SERVICE_KEY, Server
from tests.server.test_splice_http import ask

pytestmark = pytest.mark.server

TENANTS = 20
HISTORIES = int(os.environ.get("MEMOS_ISOLATION_HISTORIES", "5"))
STEPS = 60
NUMBERS = st.integers(0, TENANTS - 1)
PLACES = st.sampled_from(["hall", "shed", "attic", "cellar"])
LEVEL = (0.6, 1.7)
"""Within which the ratio of two medians counts as the same time."""


@dataclass
class Told:
    """A memory as the model knows it. `secret`: a word that is in no other text."""

    owner: str
    secret: str
    readers: set[str] = field(default_factory=set)
    version: int = 1

    def seen_by(self, tenant: str) -> bool:
        return tenant == self.owner or tenant in self.readers


class Tenants(RuleBasedStateMachine):
    """Mixed traffic against a model of who may see what; `leaks` looks at every byte that comes back."""

    def __init__(self, http: httpx.Client) -> None:
        super().__init__()
        self.http = http
        run = uuid.uuid4().hex[:8]
        self.tenants = [f"tenant-{run}-{number:02d}-x" for number in range(TENANTS)]
        self.told: dict[str, Told] = {}
        self.gone: set[str] = set()
        self.scores: dict[str, tuple[object, dict[str, float]]] = {}
        self.met: dict[str, set[str]] = {tenant: set() for tenant in self.tenants}
        """Whom a tenant has given rights to or was given some by: their own log goes on telling of it."""

    def send(self, tenant: str, method: str, path: str, body: Any = None, **query: str) -> httpx.Response:
        """One request of a tenant; its answer must not speak of anything that the tenant may not see."""
        answer = self.http.request(method, path, json=body, params=query, headers={"x-memos-user-id": tenant})
        assert answer.status_code < 500, answer.text
        raw = answer.text + repr(answer.headers.raw)
        for cube, told in self.told.items():
            if not told.seen_by(tenant):
                assert told.secret not in raw, f"{tenant} sees a text of {told.owner}"
                assert cube not in raw or cube in path, f"{tenant} sees an id of {told.owner}"
        said = {*query.values(), *(value for value in (body or {}).values() if isinstance(value, str))}
        for other in {*self.tenants} - self.met[tenant] - said - {tenant}:
            assert other not in raw, f"{tenant} sees the name of {other}"
        return answer

    def visible(self, tenant: str) -> dict[str, Told]:
        return {cube: told for cube, told in self.told.items() if told.seen_by(tenant)}

    def own(self, tenant: str) -> list[str]:
        return [cube for cube, told in self.told.items() if told.owner == tenant]

    def draw_cube(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.told)))

    @rule(number=NUMBERS, place=PLACES)
    def add(self, number: int, place: str) -> None:
        tenant, secret = self.tenants[number], f"zq{uuid.uuid4().hex}"
        body = {"text": f"The lantern {secret} is in the {place}."}
        answer = self.send(tenant, "POST", "/v1/memories", body)
        assert answer.status_code == 200, answer.text
        (memory,) = answer.json()["results"]
        self.told[memory["id"]] = Told(tenant, secret)

    @precondition(lambda self: self.told)
    @rule(data=st.data(), number=NUMBERS, to=NUMBERS)
    def share(self, data: st.DataObject, number: int, to: int) -> None:
        cube, reader = self.draw_cube(data), self.tenants[to]
        told = self.told[cube]
        actor = data.draw(st.sampled_from([told.owner, self.tenants[number]]))
        if told.owner == reader or actor == reader:
            return
        answer = self.send(actor, "POST", f"/v1/memories/{cube}/access", {"principal": reader, "rights": ["read"]})
        assert answer.status_code == (200 if actor == told.owner else 403 if told.seen_by(actor) else 404)
        if answer.status_code == 200:
            told.readers.add(reader)
            self.met[told.owner].add(reader)
            self.met[reader].add(told.owner)

    @precondition(lambda self: any(told.readers for told in self.told.values()))
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        cube = data.draw(st.sampled_from(sorted(cube for cube, told in self.told.items() if told.readers)))
        reader = data.draw(st.sampled_from(sorted(self.told[cube].readers)))
        owner = self.told[cube].owner
        answer = self.send(owner, "DELETE", f"/v1/memories/{cube}/access", principal=reader)
        assert answer.status_code == 200, answer.text
        self.told[cube].readers.discard(reader)

    @rule(number=NUMBERS)
    def search(self, number: int) -> None:
        """Exactly what the tenant may see; the scores stay as they were while that is the same."""
        tenant = self.tenants[number]
        body = {"query": "Where is the lantern?", "top_k": 1000}
        found = self.send(tenant, "POST", "/v1/memories/search", body).json()["results"]
        visible = self.visible(tenant)
        assert {memory["id"] for memory in found} == set(visible)
        held = frozenset((cube, told.version) for cube, told in visible.items())
        scores = {memory["id"]: memory["score"] for memory in found}
        before, known = self.scores.get(tenant, (None, {}))
        assert before != held or scores == known, "the scores depend on memories of others"
        self.scores[tenant] = held, scores

    @precondition(lambda self: self.told)
    @rule(data=st.data(), number=NUMBERS)
    def look_for_a_secret(self, data: st.DataObject, number: int) -> None:
        cube, tenant = self.draw_cube(data), self.tenants[number]
        body = {"query": self.told[cube].secret, "top_k": 5}
        answer = self.http.post("/v1/memories/search", json=body, headers={"x-memos-user-id": tenant})
        ids = [memory["id"] for memory in answer.json()["results"]]
        assert ids[:1] == [cube] if cube in self.visible(tenant) else cube not in ids

    @precondition(lambda self: self.told)
    @rule(
        data=st.data(),
        number=NUMBERS,
        door=st.sampled_from(["", "/history", "/versions", "/provenance", "/access"]),
    )
    def read(self, data: st.DataObject, number: int, door: str) -> None:
        """What one may not see answers as what is not there."""
        cube, tenant = self.draw_cube(data), self.tenants[number]
        answer = self.send(tenant, "GET", f"/v1/memories/{cube}{door}")
        if not self.told[cube].seen_by(tenant):
            nobody = new_id()
            missing = self.send(tenant, "GET", f"/v1/memories/{nobody}{door}")
            assert (answer.status_code, answer.text.replace(cube, nobody)) == (404, missing.text)
        elif door != "/access" or self.told[cube].owner == tenant:
            assert answer.status_code == 200, answer.text

    @precondition(lambda self: self.told)
    @rule(data=st.data(), number=NUMBERS, place=PLACES)
    def write(self, data: st.DataObject, number: int, place: str) -> None:
        cube = self.draw_cube(data)
        told = self.told[cube]
        tenant = data.draw(st.sampled_from([told.owner, self.tenants[number]]))
        body = {"text": f"The lantern {told.secret} went to the {place}."}
        answer = self.send(tenant, "PUT", f"/v1/memories/{cube}", body)
        assert answer.status_code == (200 if tenant == told.owner else 403 if told.seen_by(tenant) else 404)
        told.version += answer.status_code == 200

    @precondition(lambda self: self.told)
    @rule(data=st.data(), number=NUMBERS)
    def delete(self, data: st.DataObject, number: int) -> None:
        cube = self.draw_cube(data)
        told = self.told[cube]
        tenant = data.draw(st.sampled_from([told.owner, self.tenants[number]]))
        answer = self.send(tenant, "DELETE", f"/v1/memories/{cube}")
        assert answer.status_code == (200 if tenant == told.owner else 403 if told.seen_by(tenant) else 404)
        if answer.status_code == 200:
            del self.told[cube]
            self.gone.add(told.secret)

    @rule(number=NUMBERS)
    def count(self, number: int) -> None:
        """Lists and usage count the tenant's own; the log, the plan and health speak of no other."""
        tenant = self.tenants[number]
        listed = self.send(tenant, "GET", "/v1/memories").json()["results"]
        assert [memory["id"] for memory in listed] == sorted(self.own(tenant))
        assert self.send(tenant, "GET", "/v1/me/usage").json()["cubes"] == len(listed)
        plan = self.send(tenant, "POST", "/v1/memories/plan", {"query": "Where is the lantern?"})
        assert plan.status_code == 200, plan.text
        log = self.send(tenant, "GET", "/v1/audit")
        assert log.status_code == 200, log.text
        health = self.send(tenant, "GET", "/v1/memories/health")
        assert "vault" not in health.json(), "totals are for operators"

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        tenant = self.tenants[number]
        answer = self.send(tenant, "DELETE", "/v1/me")
        assert answer.status_code == 200, answer.text
        for cube in self.own(tenant):
            self.gone.add(self.told.pop(cube).secret)
        for told in self.told.values():
            told.readers.discard(tenant)
        for others in self.met.values():
            others.discard(tenant)
        self.met[tenant].clear()
        self.scores.pop(tenant, None)
        nothing = self.send(tenant, "POST", "/v1/memories/search", {"query": "lantern", "top_k": 1000})
        assert nothing.json()["results"] == []


def test_no_history_of_twenty_tenants_shows_one_to_another(open_api: Server) -> None:
    with open_api.http() as http:
        run_state_machine_as_test(
            lambda: Tenants(http),  # type: ignore[arg-type]
            settings=settings(
                max_examples=HISTORIES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )


def test_time_does_not_tell_whether_a_private_memory_exists(open_api: Server, user: str, other: str) -> None:
    texts = [f"Note {number}: the lantern is in box {number}." for number in range(40)]
    private = open_api.remember(user, *texts)
    with open_api.http(**{"x-memos-user-id": other}) as http:

        def seconds(path: str) -> float:
            began = time.perf_counter()
            assert http.get(path).status_code == 404
            return time.perf_counter() - began

        paths = [(f"/v1/memories/{cube}", f"/v1/memories/{new_id()}") for cube in private * 5]
        pairs = [(seconds(there), seconds(missing)) for there, missing in paths]
    there, missing = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert LEVEL[0] < there / missing < LEVEL[1], f"{there * 1e3:.2f} ms against {missing * 1e3:.2f} ms"


def test_chats_of_twenty_tenants_at_a_time_use_nobody_elses_memories(keyed_server: Server) -> None:
    run = uuid.uuid4().hex[:8]
    towns = {f"guest-{run}-{number}": f"Zq{uuid.uuid4().hex[:6]}" for number in range(TENANTS)}
    own: dict[str, set[str]] = {}

    def chat(tenant: str) -> list[httpx.Response]:
        who = {"authorization": f"Bearer {SERVICE_KEY}", "x-memos-user-id": tenant}
        with keyed_server.http(**who) as http:
            texts = [f"My home town is {towns[tenant]}.", "The train was late on Monday."]
            messages = [{"role": "user", "content": text} for text in texts]
            added = http.post("/v1/memories", json={"messages": messages}).raise_for_status()
            own[tenant] = {memory["id"] for memory in added.json()["results"]}
        return [ask(keyed_server, "What is my home town?", who) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(TENANTS) as pool:
        answers = dict(zip(towns, pool.map(chat, towns), strict=True))
    for tenant, replies in answers.items():
        for reply in replies:
            assert reply.status_code == 200, reply.text
            used = reply.headers["x-memos-cubes"].split(",")
            assert used[0] and {*used} <= own[tenant]
            raw = reply.text + repr(reply.headers.raw)
            assert not [town for other, town in towns.items() if other != tenant and town in raw]
