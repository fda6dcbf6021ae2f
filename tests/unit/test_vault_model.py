"""The vault against a model, over random sequences of calls and restarts."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from memos_vllm.cube import MemCube
from memos_vllm.errors import NotFound
from memos_vllm.vault import Event, Vault
from tests.unit.vault_cases import TINY_MAP, kv_for

OWNERS = ("maya", "bo", "cy")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


class VaultMachine(RuleBasedStateMachine):
    """Whatever the sequence of calls and restarts, the vault tells what a dict of texts would."""

    cubes = Bundle("cubes")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "memory"
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)
        self.texts: dict[str, list[str]] = {}
        self.owner: dict[str, str] = {}
        self.granted: dict[str, set[str]] = {}
        self.kv: dict[str, str] = {}
        self.pinned: set[str] = set()
        self.uses: dict[str, int] = {}
        self.revisions = dict.fromkeys(OWNERS, 0)
        self.touched: set[str] = set()

    @rule(target=cubes, owner=st.sampled_from(OWNERS), access=st.sets(st.sampled_from(OWNERS)), text=TEXTS)
    def add(self, owner: str, access: set[str], text: str) -> str:
        cube = MemCube.plaintext(text, owner=owner, access=sorted(access))
        self.vault.add([cube], actor=owner)
        self.texts[cube.id], self.owner[cube.id], self.granted[cube.id] = [text], owner, access - {owner}
        self._touch(cube.id)
        return cube.id

    @rule(cube_id=cubes, text=TEXTS)
    def update(self, cube_id: str, text: str) -> None:
        if cube_id not in self.texts:
            with pytest.raises(NotFound):
                self.vault.update(cube_id, text, actor="x")
            return
        self.vault.update(cube_id, text, actor="x")
        if text != self.texts[cube_id][-1]:
            self.kv = {key: owner for key, owner in self.kv.items() if owner != cube_id}
        self.texts[cube_id].append(text)
        self._touch(cube_id)

    @rule(cube_id=cubes, pinned=st.booleans())
    def pin(self, cube_id: str, pinned: bool) -> None:
        if cube_id in self.texts:
            if pinned != (cube_id in self.pinned):
                self._touch(cube_id)
            self.vault.prioritise(cube_id, "pinned" if pinned else "mid")
            self.pinned = self.pinned | {cube_id} if pinned else self.pinned - {cube_id}

    @rule(cube_id=cubes, count=st.integers(1, 3))
    def use(self, cube_id: str, count: int) -> None:
        self.vault.add_uses({cube_id: count}, 0.0)
        if cube_id in self.texts:
            self.uses[cube_id] = self.uses.get(cube_id, 0) + count

    @rule(key=st.sampled_from(["k1", "k2"]))
    def lose_file(self, key: str) -> None:
        (self.path / "kv" / f"{key}.safetensors").unlink(missing_ok=True)
        assert [record.key for record in self.vault.prune_kv()] == [key] * (key in self.kv)
        self.kv.pop(key, None)

    @rule(cube_id=cubes, key=st.sampled_from(["k1", "k2"]))
    def put_kv(self, cube_id: str, key: str) -> None:
        if cube_id in self.texts:
            self.vault.put_kv(kv_for(self.vault, self.vault.get(cube_id), key))
            self.kv[key] = cube_id

    @rule(cube_id=consumes(cubes))
    def delete(self, cube_id: str) -> None:
        if cube_id in self.texts:
            self._forget([cube_id])
            keys = self.vault.delete(cube_id, actor="x")
            assert set(keys) == {key for key, owner in self.kv.items() if owner == cube_id}
            self.kv = {key: owner for key, owner in self.kv.items() if owner != cube_id}
            assert [event.new_text for event in self.vault.history(cube_id)] == [None] * len(
                self.vault.history(cube_id)
            )

    @rule(owner=st.sampled_from(OWNERS))
    def delete_owner(self, owner: str) -> None:
        gone = [cube_id for cube_id in self.texts if self.owner[cube_id] == owner]
        self._forget(gone)
        assert self.vault.delete_owner(owner, actor="x")[0] == len(gone)
        self.kv = {key: cube_id for key, cube_id in self.kv.items() if cube_id not in gone}

    @rule()
    def restart(self) -> None:
        self.vault.close()
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)

    def _forget(self, cube_ids: list[str]) -> None:
        for cube_id in cube_ids:
            del self.texts[cube_id]
            self.uses.pop(cube_id, None)
            self._touch(cube_id)

    def _touch(self, cube_id: str) -> None:
        self.touched |= {self.owner[cube_id], *self.granted[cube_id]}

    @invariant()
    def lists_agree(self) -> None:
        for name in OWNERS:
            owned = {cube_id: held[-1] for cube_id, held in self.texts.items() if self.owner[cube_id] == name}
            granted = {cube_id: held[-1] for cube_id, held in self.texts.items() if name in self.granted[cube_id]}
            assert {cube.id: cube.text for cube in self.vault.list(name)} == owned
            assert {cube.id: cube.text for cube in self.vault.readable(name)} == owned | granted

    @invariant()
    def histories_agree(self) -> None:
        for cube_id, held in self.texts.items():
            events: list[Event] = self.vault.history(cube_id)
            assert [event.new_text for event in events] == held
            assert [event.old_text for event in events] == [None, *held[:-1]]

    @invariant()
    def manifest_and_files_agree(self) -> None:
        assert {record.key: record.cube_id for record in self.vault.iter_kv()} == self.kv
        assert {file.stem for file in (self.path / "kv").iterdir()} == set(self.kv) == self.vault.known_keys()
        assert self.vault.pinned_keys() == {key for key, cube_id in self.kv.items() if cube_id in self.pinned}
        assert self.vault.stats()["kv_bytes"] == 10 * len(self.kv)

    @invariant()
    def uses_agree(self) -> None:
        held = self.vault.uses_of(self.texts)
        assert {cube_id: uses.count for cube_id, uses in held.items() if uses.count} == self.uses

    @invariant()
    def revisions_grow(self) -> None:
        for name in OWNERS:
            revision = self.vault.revision(name)
            assert revision > self.revisions[name] if name in self.touched else revision == self.revisions[name]
            self.revisions[name] = revision
        self.touched.clear()

    @invariant()
    def the_vault_is_sound(self) -> None:
        assert self.vault.check() == []

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.close()
            self.folder.cleanup()


VaultMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_vault_agrees_with_a_model = VaultMachine.TestCase
