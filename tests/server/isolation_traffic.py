"""Requests of many tenants to one server, each answer of which is held against the model; and those that write."""

from __future__ import annotations

import json
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from memos_vllm.governance import groups
from memos_vllm.governance.directory import MAX_AGE
from memos_vllm.vault import Vault
from tests.server.isolation_model import Told, Viewer, World

TENANTS = 20
GROUPS = 2
MOVES = 2
"""Changes of a group in one history, for each of which the server's next look at the registry is awaited."""
NUMBERS = st.integers(0, TENANTS - 1)
PLACES = st.sampled_from(["hall", "shed", "attic", "cellar"])
RIGHTS = st.sampled_from([("read",), ("read", "write"), ("read", "share"), ("read", "write", "share")])
TAGS = st.sampled_from([(), (), ("work",), ("health",)])


@dataclass(frozen=True)
class Doors:
    """A server for many tenants: with a key that is cleared for all, one that is not, and its vault."""

    http: httpx.Client
    full: str
    limited: str
    vault: Vault


class Traffic(RuleBasedStateMachine):
    """What all rules need, and the rules that write."""

    def __init__(self, doors: Doors) -> None:
        super().__init__()
        self.doors = doors
        run = uuid.uuid4().hex[:8]
        names = [f"tenant-{run}-{number:02d}-x" for number in range(TENANTS)]
        self.world = World(names, [f"group:den-{run}-{number}" for number in range(GROUPS)])
        self.moves = 0

    def send(
        self,
        viewer: Viewer,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **query: str,
    ) -> httpx.Response:
        """One request; its answer must not speak of anything that the viewer may not see."""
        key = self.doors.limited if viewer.limited else self.doors.full
        who = {"authorization": f"Bearer {key}", "x-memos-user-id": viewer.name, **(headers or {})}
        answer = self.doors.http.request(method, path, json=body, params=query, headers=who)
        assert answer.status_code < 500, answer.text
        self.check(viewer, answer.text + repr(answer.headers.raw), f"{path} {query} {headers} {json.dumps(body)}")
        return answer

    def check(self, viewer: Viewer, raw: str, said: str = "") -> None:
        assert not (found := list(self.world.leaks(viewer, raw, said))), f"{viewer} sees {found}: {raw[:2000]}"

    def ask(self, viewer: Viewer, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The body of an answer that has to be a success."""
        answer = self.send(viewer, method, path, body, None, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def steps(self, viewer: Viewer, *steps: dict[str, Any]) -> httpx.Response:
        return self.send(viewer, "POST", "/v1/pipelines", {"steps": [*steps]})

    def text(self, place: str) -> tuple[str, str]:
        """A text, and the word in it that is nowhere else."""
        secret = f"zq{uuid.uuid4().hex}"
        return f"The lantern {secret} is in the {place}.", secret

    def viewer(self, data: st.DataObject, cube: str | None = None) -> Viewer:
        """Anybody; where a memory is named, every other time somebody who may do something with it."""
        names = self.world.tenants
        if cube is not None and data.draw(st.booleans()):
            names = [name for name in names if self.world.rights(Viewer(name), cube)] or names
        return Viewer(data.draw(st.sampled_from(names)), data.draw(st.integers(0, 3)) == 0)

    def cube(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.world.told)))

    @initialize(members=st.lists(st.sets(NUMBERS, min_size=2, max_size=4), min_size=GROUPS, max_size=GROUPS))
    def gather(self, members: list[set[int]]) -> None:
        for (group, known), numbers in zip(self.world.groups.items(), members, strict=True):
            known |= {self.world.tenants[number] for number in numbers}
            groups.add(self.doors.vault, group.removeprefix("group:"), sorted(known), actor="operator:test")
        time.sleep(MAX_AGE * 1.2)

    def teardown(self) -> None:
        """Nobody sees at the end what was shared, revoked, deleted or forgotten on the way; then all of it goes."""
        if sys.exc_info()[0] is None:  # no rule has failed
            for tenant in self.world.tenants:
                self.see_all(Viewer(tenant))
                self.see_all(Viewer(tenant, True))
        for tenant in self.world.tenants:
            self.doors.vault.forget(tenant, actor="operator:test")
        for group in self.world.groups:
            self.doors.vault.delete_owner(group, actor="operator:test", snapshots=True)
            groups.remove(self.doors.vault, group.removeprefix("group:"), [], actor="operator:test")

    def see_all(self, viewer: Viewer) -> None:
        """Everything that one request tells of many memories."""
        body = {"query": "Where is the lantern?", "top_k": 1000}
        found = self.ask(viewer, "POST", "/v1/memories/search", body)["results"]
        assert {memory["id"] for memory in found} == self.world.found(viewer)
        listed = self.ask(viewer, "GET", "/v1/memories")["results"]
        assert [memory["id"] for memory in listed] == self.world.own(viewer)
        self.ask(viewer, "GET", "/v1/audit", limit="1000")

    @rule(data=st.data(), place=PLACES, tags=TAGS, door=st.sampled_from(["", "/", "v3", "pipeline"]))
    def add(self, data: st.DataObject, place: str, tags: tuple[str, ...], door: str) -> None:
        viewer, (text, secret) = self.viewer(data), self.text(place)
        body = {"text": text, "sensitivity": [*tags]}
        if door == "pipeline":
            answer = self.steps(viewer, {"type": "add", **body})
        else:
            answer = self.send(viewer, "POST", "/v3/memories/add/" if door == "v3" else f"/v1/memories{door}", body)
        assert answer.status_code == 200, answer.text
        (memory,) = answer.json()["results"]
        told = Told(viewer.name, {1: secret}, "health" in tags, authors={viewer.name})
        self.world.told[memory["id"]] = told

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), to=NUMBERS, rights=RIGHTS, piped=st.booleans())
    def share(self, data: st.DataObject, to: int, rights: tuple[str, ...], piped: bool) -> None:
        """The owner gives any rights; who may share passes on what they have, and takes nothing away."""
        cube = self.cube(data)
        viewer, told = self.viewer(data, cube), self.world.told[cube]
        principal = data.draw(st.sampled_from([self.world.tenants[to], *self.world.groups]))
        if principal == told.owner:
            return
        held, before = self.world.rights(viewer, cube), told.rights.get(principal, frozenset())
        passes = "share" in held and {*rights} <= held and before <= {*rights}
        wanted = 200 if "own" in held or passes else 403 if held else 404
        if piped:
            step = {"type": "grant", "id": cube, "principal": principal, "rights": [*rights]}
            answer = self.steps(viewer, step)
        else:
            body = {"principal": principal, "rights": [*rights]}
            answer = self.send(viewer, "POST", f"/v1/memories/{cube}/access", body)
        assert answer.status_code == wanted, answer.text
        if wanted == 200:
            told.rights[principal] = frozenset(rights)
            self.world.meet(told.owner, self.world.people(principal) | {viewer.name})

    @precondition(lambda self: any(told.rights for told in self.world.told.values()))
    @rule(data=st.data(), all_of_them=st.booleans())
    def revoke(self, data: st.DataObject, all_of_them: bool) -> None:
        cube = data.draw(st.sampled_from(sorted(cube for cube, told in self.world.told.items() if told.rights)))
        viewer, told = self.viewer(data, cube), self.world.told[cube]
        principal = data.draw(st.sampled_from(sorted(told.rights)))
        path = f"/v1/memories/{cube}/access"
        if all_of_them:
            answer = self.send(viewer, "PUT", path, {"access": []})
        else:
            answer = self.send(viewer, "DELETE", path, principal=principal)
        assert answer.status_code == self.world.status(viewer, cube, "own"), answer.text
        if answer.status_code == 200:
            told.rights = {} if all_of_them else {name: of for name, of in told.rights.items() if name != principal}

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), place=PLACES, door=st.sampled_from(["", "/", "batch", "pipeline"]))
    def write(self, data: st.DataObject, place: str, door: str) -> None:
        cube, (text, secret) = self.cube(data), self.text(place)
        viewer = self.viewer(data, cube)
        if door == "pipeline":
            answer = self.steps(viewer, {"type": "update", "id": cube, "text": text})
        elif door == "batch":
            answer = self.send(viewer, "PUT", "/v1/batch/", {"memories": [{"memory_id": cube, "text": text}]})
        else:
            answer = self.send(viewer, "PUT", f"/v1/memories/{cube}{door}", {"text": text})
        assert answer.status_code == self.world.status(viewer, cube, "write"), answer.text
        if answer.status_code == 200:
            self.world.write(cube, viewer.name, self.world.told[cube].version + 1, secret)

    @precondition(lambda self: self.world.told)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        cube = self.cube(data)
        viewer, told = self.viewer(data, cube), self.world.told[cube]
        version = data.draw(st.sampled_from(sorted(told.texts)))
        answer = self.send(viewer, "POST", f"/v1/memories/{cube}/rollback", {"version": version})
        allowed = self.world.status(viewer, cube, "write")
        assert answer.status_code == (409 if (allowed, version) == (200, told.version) else allowed), answer.text
        if answer.status_code == 200:
            self.world.write(cube, viewer.name, told.version + 1, told.texts[version])

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), piped=st.booleans())
    def change_state(self, data: st.DataObject, piped: bool) -> None:
        """Into the archive, or out of it."""
        cube = self.cube(data)
        viewer, told = self.viewer(data, cube), self.world.told[cube]
        state = "activated" if told.state == "archived" else "archived"
        if told.used:
            return
        if piped:
            answer = self.steps(viewer, {"type": "transition", "id": cube, "state": state})
        else:
            answer = self.send(viewer, "PUT", f"/v1/memories/{cube}/state", {"state": state})
        assert answer.status_code == self.world.status(viewer, cube, "own"), answer.text
        if answer.status_code == 200:
            told.state, told.used = state, state == "activated"

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), door=st.sampled_from(["", "/", "batch", "pipeline", "several"]))
    def delete(self, data: st.DataObject, door: str) -> None:
        cube = self.cube(data)
        viewer = self.viewer(data, cube)
        if door == "pipeline":
            answer = self.steps(viewer, {"type": "delete", "id": cube})
        elif door == "batch":
            answer = self.send(viewer, "DELETE", "/v1/batch/", {"memories": [{"memory_id": cube}]})
        elif door == "several":
            answer = self.send(viewer, "POST", "/v1/memories/delete", {"ids": [cube]})
        else:
            answer = self.send(viewer, "DELETE", f"/v1/memories/{cube}{door}")
        assert answer.status_code == self.world.status(viewer, cube, "own"), answer.text
        if answer.status_code == 200:
            self.world.drop(cube)

    @precondition(lambda self: self.moves < MOVES)
    @rule(data=st.data(), number=NUMBERS)
    def move(self, data: st.DataObject, number: int) -> None:
        """Somebody joins a group, or leaves it."""
        tenant, group = self.world.tenants[number], data.draw(st.sampled_from(sorted(self.world.groups)))
        members, name = self.world.groups[group], group.removeprefix("group:")
        if tenant in members:
            groups.remove(self.doors.vault, name, [tenant], actor="operator:test")
            members.remove(tenant)
        else:
            groups.add(self.doors.vault, name, [tenant], actor="operator:test")
            members.add(tenant)
        self.moves += 1
        time.sleep(MAX_AGE * 1.2)
