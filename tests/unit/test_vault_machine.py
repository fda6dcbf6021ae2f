"""Lifecycle, versions, snapshots, pipelines and forgetting against a model in plain Python, over random sequences."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from memos_vllm.cube import MemCube, State
from memos_vllm.errors import MemosError, NotFound
from memos_vllm.vault import Vault
from memos_vllm.vault.pipeline import (
    AddStep,
    DeleteStep,
    GrantStep,
    MergeStep,
    PurifyStep,
    Step,
    TransferStep,
    TransitionStep,
    UpdateStep,
)
from tests.unit.vault_cases import TINY_MAP
from tests.unit.vault_model import Copy, Known, Model, Refused

OWNERS = ("maya", "bo", "cy")
WORDS = st.sampled_from(["tea", "milk", "rain", "snow"])
TAGS = st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple)
STATES = st.sampled_from(get_args(State))

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "update", "merge", "transfer", "purify", "delete", "grant", "transition"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from(OWNERS),
        WORDS,
        STATES,
    ),
    min_size=1,
    max_size=4,
)


class VaultMachine(RuleBasedStateMachine):
    """Whatever the sequence, the vault tells what the model does, refuses what it refuses, and is sound."""

    ids = Bundle("ids")

    @initialize(target=ids)
    def open(self) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "memory"
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)
        self.model = Model()
        self.forgotten: set[str] = set()
        ids = [self.add(owner, {"cy"}, text, ()) for owner in ("maya", "bo") for text in ("tea", "milk")]
        for cube_id in ids:
            self.update(cube_id, "rain", "bo", "append")
        return multiple(*ids)

    def _agree(self, expected: Callable[[Model], Any], call: Callable[[], Any]) -> Any:
        """Both do it, or both refuse and nothing has changed."""
        after = copy.deepcopy(self.model)
        try:
            outcome = expected(after)
        except Refused:
            with pytest.raises(MemosError):
                call()
            return None
        result = call()
        self.model = after
        return outcome, result

    @rule(target=ids, owner=st.sampled_from(OWNERS), access=st.sets(st.sampled_from(OWNERS)), text=WORDS, tags=TAGS)
    def add(self, owner: str, access: set[str], text: str, tags: tuple[str, ...]) -> str:
        cube = MemCube.plaintext(text, owner=owner, access=sorted(access), tags=tags)
        self.vault.add([cube], actor=owner)
        self.model.add(cube)
        self.forgotten -= {owner, *access}
        return cube.id

    @rule(cube_id=ids, text=WORDS, actor=st.sampled_from(OWNERS), operation=st.sampled_from(["overwrite", "append"]))
    def update(self, cube_id: str, text: str, actor: str, operation: Any) -> None:
        if self._agree(
            lambda model: model.update(cube_id, text, operation),
            lambda: self.vault.update(cube_id, text, actor=actor, operation=operation),
        ):
            self.forgotten.discard(actor)

    @rule(cube_id=ids, back=st.sampled_from([1, 2, 0, 3]))
    def rollback(self, cube_id: str, back: int) -> None:
        version = self.model.cubes[cube_id].newest - back if cube_id in self.model.cubes else 1
        self._agree(
            lambda model: model.rollback(cube_id, version), lambda: self.vault.rollback(cube_id, version, actor="x")
        )

    @rule(cube_id=ids, state=STATES)
    def transition(self, cube_id: str, state: State) -> None:
        self._agree(
            lambda model: model.transition(cube_id, state), lambda: self.vault.transition(cube_id, state, actor="x")
        )

    @rule(cube_id=ids, tags=TAGS, access=st.sets(st.sampled_from(OWNERS)))
    def edit(self, cube_id: str, tags: tuple[str, ...], access: set[str]) -> None:
        def expected(model: Model) -> None:
            cube = model.find(cube_id)
            cube.versions[cube.newest] = (cube.content[0], tags)
            cube.access = access - {cube.owner}

        if self._agree(expected, lambda: self.vault.edit(cube_id, actor="x", tags=tags, access=access)):
            self.forgotten -= access

    @rule(cube_id=ids, snapshots=st.booleans())
    def delete(self, cube_id: str, snapshots: bool) -> None:
        self._agree(
            lambda model: model.delete(cube_id, snapshots=snapshots),
            lambda: self.vault.delete(cube_id, actor="x", snapshots=snapshots),
        )

    @rule(owner=st.sampled_from(OWNERS), name=st.sampled_from(["one", "two"]))
    def snapshot(self, owner: str, name: str) -> None:
        def expected(model: Model) -> None:
            if (owner, name) in model.snapshots:
                raise Refused
            copies = {cube_id: Copy(cube.content, cube.state) for cube_id, cube in model.owned(owner).items()}
            model.snapshots[owner, name] = copies

        if self._agree(expected, lambda: self.vault.snapshot(owner, name, actor=owner)):
            self.forgotten.discard(owner)

    def _snapshot(self, pick: int) -> tuple[str, str]:
        held = sorted(self.model.snapshots) or [("maya", "none")]
        return held[pick % len(held)]

    @rule(pick=st.integers(0, 5))
    def drop_snapshot(self, pick: int) -> None:
        owner, name = self._snapshot(pick)

        def expected(model: Model) -> None:
            if model.snapshots.pop((owner, name), None) is None:
                raise Refused

        self._agree(expected, lambda: self.vault.drop_snapshot(owner, name, actor="x"))

    @rule(pick=st.integers(0, 5))
    def restore_snapshot(self, pick: int) -> None:
        owner, name = self._snapshot(pick)
        self._agree(
            lambda model: model.restore(owner, name), lambda: self.vault.restore_snapshot(owner, name, actor="x")
        )

    @rule(target=ids, drawn=STEPS)
    def pipeline(self, drawn: list[tuple[str, int, int, str, str, State]]) -> Any:
        """Steps take the cubes that there are, and those that earlier steps made."""
        steps: list[Step] = []
        made: list[str | None] = []
        after = copy.deepcopy(self.model)
        try:
            for choice in drawn:
                made.append(self._step(after, steps, made, *choice))
        except Refused:
            with pytest.raises(MemosError):
                self.vault.pipeline(steps, actor="x")
            return multiple()
        left = self.vault.pipeline(steps, actor="x")
        assert {cube.header.author for cube, new in zip(left, made, strict=True) if new} <= {"x"}
        names = {f"#{n}": cube.id for n, cube in enumerate(left)}
        after.cubes = {names.get(name, name): cube for name, cube in after.cubes.items()}
        after.last = {names.get(name, name): number for name, number in after.last.items()}
        self.model = after
        self.forgotten -= {name for cube in left for name in cube.readers()}
        return multiple(*(cube.id for cube, new in zip(left, made, strict=True) if new))

    def _step(
        self,
        model: Model,
        steps: list[Step],
        made: list[str | None],
        kind: str,
        first: int,
        second: int,
        owner: str,
        text: str,
        state: State,
    ) -> str | None:
        """Append a step and apply it to the model; returns the name of the cube that it made."""
        here = f"#{len(steps)}"
        known = sorted(model.cubes) or ["0" * 32]
        one = known[first % len(known)]
        if kind == "add":
            cube = MemCube.plaintext(text, owner=owner)
            steps.append(AddStep(cube))
            model.cubes[here] = Known(owner, 1, {1: (text, ())})
            return here
        if kind == "merge":
            owned = sorted(model.owned(owner)) or known
            ids = owned[first % len(owned)], owned[(first + 1 + second // 2) % len(owned)]
            steps.append(MergeStep(ids))
            model.cubes[here] = model.merge(ids)
            return here
        if kind == "transfer":
            steps.append(TransferStep(one, owner))
            model.cubes[here] = model.transfer(one, owner)
            return here
        if kind == "update":
            steps.append(UpdateStep(one, text, "merge"))
            model.update(one, text, "merge")
        elif kind == "purify":
            steps.append(PurifyStep(one, text))
            model.update(one, text, "purify")
        elif kind == "delete":
            steps.append(DeleteStep(one, snapshots=bool(second)))
            model.delete(one, snapshots=bool(second))
        elif kind == "grant":
            steps.append(GrantStep(one, owner, ("read",) if first else ()))
            model.grant(one, owner, ("read",) if first else ())
        else:
            steps.append(TransitionStep(one, state))
            model.transition(one, state)
        return None

    @rule(principal=st.sampled_from(OWNERS), actor=st.sampled_from(["admin", "maya"]))
    def forget(self, principal: str, actor: str) -> None:
        self.vault.forget(principal, actor=actor)
        self.model.forget(principal)
        self.forgotten = (self.forgotten - {actor}) | {principal}

    @rule()
    def restart(self) -> None:
        self.vault.close()
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)

    @invariant()
    def cubes_agree(self) -> None:
        for owner in OWNERS:
            owned = self.model.owned(owner)
            stored = {cube.id: cube for cube in self.vault.list(owner)}
            assert stored.keys() == owned.keys()
            for cube_id, cube in stored.items():
                known = owned[cube_id]
                assert (cube.version, cube.header.state, set(cube.readers())) == (
                    known.newest,
                    known.state,
                    {owner, *known.access},
                )
                kept = {held.version: (held.text, held.header.tags) for held in self.vault.versions(cube_id)}
                assert kept == known.versions
            assert self.vault.usage(owner).cubes == len(owned)

    @invariant()
    def snapshots_agree(self) -> None:
        for owner in OWNERS:
            held = {(owner, snapshot.name): snapshot.cubes for snapshot in self.vault.snapshots(owner)}
            expected = {key: len(copies) for key, copies in self.model.snapshots.items() if key[0] == owner}
            assert held == expected

    @invariant()
    def the_forgotten_leave_no_trace(self) -> None:
        for principal in self.forgotten:
            assert self.vault.traces_of(principal) == {} == self.vault.traces_anywhere(principal)

    @invariant()
    def the_vault_is_sound(self) -> None:
        assert self.vault.check() == []

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            for cube_id in self.model.last.keys() - self.model.cubes.keys():
                with pytest.raises(NotFound):
                    self.vault.get(cube_id)
            self.vault.close()
            self.folder.cleanup()


VaultMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_vault_agrees_with_a_model = VaultMachine.TestCase
