"""Tenants that search, read, count, chat, and reach for what is not theirs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from transformers import AutoTokenizer

from memos_vllm.cube import new_id
from tests.server.conftest import MODEL_NAME, model_path
from tests.server.isolation_model import Viewer
from tests.server.isolation_traffic import NUMBERS, PLACES, Doors, Traffic

CHATS = 3
"""Of one history: the model answers in a tenth of a second."""
QUESTION = "Where is the lantern?"
SEARCHES = st.sampled_from(
    ["/v1/memories/search", "/v1/memories/search/", "/v2/memories/search/", "/v3/memories/search/"]
)
LOOKS = ["", "/", "/history", "/history/", "/versions", "/provenance", "/access"]
NEEDS = {"/history": "write", "/history/": "write", "/versions": "write", "/access": "own"}

tokenizer: Any = AutoTokenizer.from_pretrained(model_path())


class Looks(Traffic):
    """The rules that change nothing."""

    def __init__(self, doors: Doors) -> None:
        super().__init__(doors)
        self.scores: dict[Viewer, tuple[object, dict[str, float]]] = {}
        self.chats = 0

    @rule(data=st.data(), door=SEARCHES)
    def search(self, data: st.DataObject, door: str) -> None:
        """Exactly what the viewer may see; the scores stay as they were while that is the same."""
        viewer = self.viewer(data)
        found = self.ask(viewer, "POST", door, {"query": QUESTION, "top_k": 1000})["results"]
        scores = {memory["id"]: memory["score"] for memory in found}
        assert scores.keys() == self.world.found(viewer)
        held = self.world.routes(viewer)
        before, known = self.scores.get(viewer, (None, {}))
        assert before != held or scores == known, "the scores depend on memories of others"
        self.scores[viewer] = held, scores

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), door=SEARCHES)
    def look_for_a_secret(self, data: st.DataObject, door: str) -> None:
        cube = self.cube(data)
        viewer = self.viewer(data, cube)
        found = self.ask(viewer, "POST", door, {"query": self.world.told[cube].secret, "top_k": 5})["results"]
        assert (cube in {memory["id"] for memory in found}) == (cube in self.world.found(viewer))

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), door=st.sampled_from(LOOKS))
    def read(self, data: st.DataObject, door: str) -> None:
        """What one may not see answers as what is not there."""
        cube = self.cube(data)
        viewer = self.viewer(data, cube)
        answer = self.send(viewer, "GET", f"/v1/memories/{cube}{door}")
        assert answer.status_code == self.world.status(viewer, cube, NEEDS.get(door, "read")), answer.text
        if answer.status_code == 404:
            nobody = new_id()
            missing = self.send(viewer, "GET", f"/v1/memories/{nobody}{door}")
            assert (missing.status_code, answer.text.replace(cube, nobody)) == (404, missing.text)

    @rule(data=st.data())
    def count(self, data: st.DataObject) -> None:
        """Lists and counts are of what is the viewer's, and their key's to read."""
        viewer = self.viewer(data)
        self.see_all(viewer)
        own = self.world.own(viewer)
        paged = self.ask(viewer, "POST", "/v3/memories/", {"filters": {"AND": [{"user_id": viewer.name}]}})
        assert paged["count"] == len(own) and {memory["id"] for memory in paged["results"]} == {*own}
        usage = self.ask(viewer, "GET", "/v1/me/usage")
        assert usage["cubes"] == len(own) and (usage["bytes"] > 0) >= bool(own)
        entities = self.ask(viewer, "GET", "/v1/entities/")["results"]
        assert [entity["total_memories"] for entity in entities] == [len(own)] * bool(own)
        snapshots = self.ask(viewer, "GET", "/v1/snapshots")["results"]
        kept = {snapshot["name"]: snapshot["memories"] for snapshot in snapshots}
        assert kept == {name: len(self.world.copies(viewer, name)) for name in self.world.snapshots[viewer.name]}
        health = self.send(viewer, "GET", "/v1/memories/health")
        assert ("vault" in health.json()) == (not viewer.limited), "totals are for operators"
        for group, members in self.world.groups.items():
            listed = self.send(viewer, "GET", "/v1/memories", owner=group)
            assert listed.status_code == (200 if viewer.name in members else 403)
            if viewer.name in members:
                assert [memory["id"] for memory in listed.json()["results"]] == self.world.own(viewer, group)
            else:
                assert self.send(viewer, "GET", "/v1/audit", owner=group).status_code == 403
                assert self.send(viewer, "GET", "/v1/snapshots", owner=group).status_code == 403

    @rule(data=st.data(), actor=NUMBERS)
    def ask_what_others_did(self, data: st.DataObject, actor: int) -> None:
        """The log of one's own memories, whoever is asked for."""
        viewer, other = self.viewer(data), self.world.tenants[actor]
        entries = self.ask(viewer, "GET", "/v1/audit", actor=other, limit="1000")["results"]
        assert {(entry["actor"], entry["owner"]) for entry in entries} <= {(other, viewer.name)}
        if other not in self.world.met[viewer.name] | {viewer.name}:
            assert not entries

    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        viewer = self.viewer(data)
        plan = self.ask(viewer, "POST", "/v1/memories/plan", {"query": QUESTION})
        named = {choice["memory"]["id"] for choice in plan["chosen"]} | {left["id"] for left in plan["left_out"]}
        own = self.world.found(viewer) & {*self.world.own(viewer)}
        assert named <= own and plan["considered"] == len(named)

    @precondition(lambda self: self.chats < CHATS and self.world.told)
    @rule(data=st.data(), naming=st.booleans())
    def chat(self, data: st.DataObject, naming: bool) -> None:
        """A prompt holds what its headers name: memories of the caller's own, or what they named and may read."""
        cube = self.cube(data)
        viewer, told = self.viewer(data, cube), self.world.told[cube]
        if naming and told.state == "archived" and cube in self.world.own(viewer):
            return  # brought back by the use
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": QUESTION}], "return_token_ids": True}
        headers = {"x-memos-cubes": cube} if naming else {}
        answer = self.send(viewer, "POST", "/v1/chat/completions", body | {"max_tokens": 4, "temperature": 0}, headers)
        usable = self.world.found(viewer) if naming else self.world.found(viewer) & {*self.world.own(viewer)}
        if naming and cube not in usable:
            assert answer.status_code == 404, answer.text
            return
        assert answer.status_code == 200, answer.text
        self.chats += 1
        used = [cube_id for cube_id in answer.headers["x-memos-cubes"].split(",") if cube_id]
        assert used == [cube] if naming else ({*used} <= usable and bool(used) == bool(usable))
        prompt = tokenizer.decode(answer.json()["prompt_token_ids"])
        self.check(viewer, prompt)
        assert {told.secret for told in self.world.told.values() if told.secret in prompt} == {
            self.world.told[cube_id].secret for cube_id in used
        }
        for cube_id in used:
            self.world.told[cube_id].used = True
        if not naming:
            plan = self.ask(viewer, "POST", "/v1/memories/plan", {"query": QUESTION})
            assert [choice["memory"]["id"] for choice in plan["chosen"]] == used

    @precondition(lambda self: self.world.told)
    @rule(data=st.data(), place=PLACES, verb=st.sampled_from(["update", "purify", "delete", "transfer", "merge"]))
    def reach(self, data: st.DataObject, place: str, verb: str) -> None:
        """A pipeline that also touches what the viewer has no right to does nothing at all, and tells nothing of it."""
        cube, (text, secret), (other, _) = self.cube(data), self.text(place), self.text(place)
        viewer = self.viewer(data, cube)
        if self.world.status(viewer, cube, "write" if verb == "update" else "own") == 200:
            return
        more: dict[str, dict[str, Any]] = {
            "transfer": {"owner": viewer.name},
            "merge": {"ids": ["#0", cube], "text": other},
            "delete": {},
        }
        step = {"type": verb, **({} if verb == "merge" else {"id": cube}), **more.get(verb, {"text": other})}
        answer = self.steps(viewer, {"type": "add", "text": text}, step)
        assert answer.status_code in (403, 404), answer.text
        assert (answer.status_code == 403) == bool(self.world.rights(viewer, cube))
        found = self.ask(viewer, "POST", "/v1/memories/search", {"query": secret, "top_k": 1000})["results"]
        assert {memory["id"] for memory in found} == self.world.found(viewer)
