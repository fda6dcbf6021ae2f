"""Tenants that tidy up, give away, pack up, bring back, and go."""

from __future__ import annotations

import time
from typing import Any

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from memos_vllm.governance.directory import MAX_AGE
from tests.server.isolation_looks import Looks
from tests.server.isolation_model import Told, Viewer
from tests.server.isolation_traffic import NUMBERS, PLACES

NAMES = st.sampled_from(["before", "after"])


class Tenants(Looks):
    """Mixed traffic against a model of who may see what."""

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), place=PLACES, verb=st.sampled_from(["purify", "merge"]))
    def tidy(self, data: st.DataObject, place: str, verb: str) -> None:
        """A cleaned text leaves nothing of those before it; a merged memory is read by who might read all of it."""
        cube, (text, secret) = self.cube(data), self.text(place)
        told = self.world.told[cube]
        if told.owner not in self.world.tenants:
            return
        viewer = Viewer(told.owner)
        if verb == "purify":
            memory = self.left(self.steps(viewer, {"type": "purify", "id": cube, "text": text}))
            self.world.gone |= {*told.texts.values()}
            told.texts = {memory["version"]: secret}
            for kept in self.world.snapshots[viewer.name].values():
                if cube in kept:
                    kept[cube] = kept[cube]._replace(secret=secret)
            return
        others = [other for other in self.world.own(viewer) if other != cube and self.world.told[other].hot]
        if not (others and told.hot):
            return
        first = data.draw(st.sampled_from(others))
        memory = self.left(self.steps(viewer, {"type": "merge", "ids": [first, cube], "text": text}))
        one = self.world.told[first]
        common = {name: one.rights[name] & told.rights[name] for name in one.rights.keys() & told.rights.keys()}
        delicate = one.delicate or told.delicate
        merged = Told(told.owner, {1: secret}, delicate, common, origins={first, cube}, authors={viewer.name})
        self.world.told[memory["id"]] = merged
        one.state = told.state = "merged"

    @precondition(lambda self: any(self.world.groups.values()) and self.world.told)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """To a group of one's own: as another memory, which nobody but its members may read."""
        group = data.draw(st.sampled_from(sorted(self.world.groups)))
        members = self.world.groups[group]
        held = sorted(cube for cube, told in self.world.told.items() if told.owner in members)
        if not held:
            return
        cube = data.draw(st.sampled_from(held))
        told = self.world.told[cube]
        viewer = Viewer(told.owner)
        memory = self.left(self.steps(viewer, {"type": "transfer", "id": cube, "owner": group}))
        authors = {viewer.name}
        given = Told(group, {1: told.secret}, told.delicate, origins={cube}, authors=authors)
        self.world.drop(cube)
        self.world.told[memory["id"]] = given
        self.world.meet(viewer.name, {viewer.name})

    @rule(data=st.data(), name=NAMES)
    def take_snapshot(self, data: st.DataObject, name: str) -> None:
        viewer = self.viewer(data)
        answer = self.send(viewer, "POST", "/v1/snapshots", {"name": name})
        kept = self.world.snapshots[viewer.name]
        assert answer.status_code == (409 if name in kept else 200), answer.text
        if name not in kept:
            owned = [cube for cube, told in self.world.told.items() if told.owner == viewer.name]
            kept[name] = {cube: self.world.copy_of(cube) for cube in owned}
            assert answer.json()["memories"] == len(self.world.copies(viewer, name))

    @rule(data=st.data(), name=NAMES)
    def drop_snapshot(self, data: st.DataObject, name: str) -> None:
        viewer = self.viewer(data)
        kept = self.world.snapshots[viewer.name]
        answer = self.send(viewer, "DELETE", f"/v1/snapshots/{name}")
        assert answer.status_code == (403 if viewer.limited else 200 if name in kept else 404), answer.text
        if answer.status_code == 200:
            del kept[name]

    @precondition(lambda self: any(self.world.snapshots.values()))
    @rule(data=st.data(), limited=st.booleans())
    def restore(self, data: st.DataObject, limited: bool) -> None:
        """Content and state of then, for what the key is cleared for; what was revived is its owner's alone."""
        owner = data.draw(st.sampled_from(sorted(name for name, kept in self.world.snapshots.items() if kept)))
        name = data.draw(st.sampled_from(sorted(self.world.snapshots[owner])))
        viewer, told = Viewer(owner, limited), self.world.told
        if any(told[cube].used for cube in self.world.own(Viewer(owner))):
            return
        copies, newer = self.world.copies(viewer, name), self.world.own(viewer)
        newer = [cube for cube in newer if cube not in self.world.snapshots[owner][name]]
        done = self.ask(viewer, "POST", f"/v1/snapshots/{name}/restore")
        changed, revived, archived = (
            {memory["id"]: memory for memory in done[kind]} for kind in ("results", "revived", "archived")
        )
        assert revived.keys() == copies.keys() - told.keys()
        assert archived.keys() == {cube for cube in newer if told[cube].state != "archived"}
        differing = {cube for cube, copy in copies.items() if cube in told and told[cube].secret != copy.secret}
        assert differing <= changed.keys() <= copies.keys()
        for cube in archived:
            told[cube].state = "archived"
        for cube, copy in copies.items():
            if cube in revived:
                self.world.revive(cube, copy, revived[cube]["version"])
            elif cube in differing:
                self.world.write(cube, owner, changed[cube]["version"], copy.secret)
            told[cube].state = copy.state

    @rule(number=NUMBERS)
    def forget(self, number: int) -> None:
        tenant = self.world.tenants[number]
        assert self.send(Viewer(tenant, True), "DELETE", "/v1/me").status_code == 403
        done = self.ask(Viewer(tenant), "DELETE", "/v1/me")
        assert done["deleted"]["cubes"] == sum(told.owner == tenant for told in self.world.told.values())
        assert done["traces"] == {}
        member = any(tenant in members for members in self.world.groups.values())
        self.world.forget(tenant)
        self.scores = {viewer: held for viewer, held in self.scores.items() if viewer.name != tenant}
        if member:
            time.sleep(MAX_AGE * 1.2)
        self.see_all(Viewer(tenant))
        assert not self.world.visible(Viewer(tenant))

    def left(self, answer: httpx.Response) -> Any:
        """What the last step of a pipeline has left."""
        assert answer.status_code == 200, answer.text
        return answer.json()["results"][-1]
