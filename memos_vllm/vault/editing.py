"""The part of a vault that changes single cubes and removes them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from memos_vllm.cube import Grant, MemCube, Namespace, Priority, Scalar, State, checked_id, now
from memos_vllm.errors import Conflict
from memos_vllm.vault import changes, forgotten, manifest, removals, snapshots, states, tables, versions
from memos_vllm.vault.env import Txn
from memos_vllm.vault.kv import KVManifest
from memos_vllm.vault.records import Uses
from memos_vllm.vault.removals import Removal, Step
from memos_vllm.vault.versions import UpdateOperation

_RULES = frozenset({"priority", "namespace", "expires", "half_life_days", "sensitivity"})
"""Header fields that say how a cube is to be treated: no quota keeps anybody from changing them."""

Allowed: TypeAlias = Callable[[MemCube], None]
"""Raises what the caller is to see where they may not change a cube."""


class Editing(KVManifest):
    """Whether the actor may is asked where `allowed` is given: inside the transaction, so that a right which was taken
    away before counts. It may be asked twice.
    """

    def update(
        self,
        cube_id: str,
        text: str,
        *,
        actor: str,
        operation: UpdateOperation = "overwrite",
        metadata: Mapping[str, Scalar] | None = None,
        happened: str | None = None,
        tags: Iterable[str] | None = None,
        expires: str | None = None,
        expect: int | None = None,
        allowed: Allowed | None = None,
    ) -> MemCube:
        """Store and return the next version of a cube; K/V of another text go with it.

        operation: `overwrite` the text; `append` a line; `merge` the lines that it lacks; `purify`: overwrite it,
        remove the versions before, and let copies in snapshots have the new text.
        metadata: these keys replace those of the same name; happened, tags, expires: None leaves them as they are.
        expires: "" takes it away. expect: the version that the caller saw.
        Raises NotFound, BadInput, TooLarge, Conflict.
        """
        fields = versions.given_fields(happened=happened, tags=None if tags is None else tuple(tags), expires=expires)

        def work(txn: Txn) -> MemCube:
            old = _found(txn, cube_id, allowed)
            versions.check_seen(old, expect)
            new = versions.following(old, text, actor, operation, metadata=metadata, **fields)
            changes.supersede(txn, old, new, actor)
            if operation == "purify":
                snapshots.purify(txn, new)
            return new

        updated = self._change(work)
        self._bury()
        return updated

    def edit(
        self,
        cube_id: str,
        *,
        actor: str,
        access: Iterable[Grant | str] | None = None,
        tags: Iterable[str] | None = None,
        priority: Priority | None = None,
        namespace: Namespace | None = None,
        expires: str | None = None,
        half_life_days: float | None = None,
        sensitivity: Iterable[str] | None = None,
        watermark: str | None = None,
        metadata: Mapping[str, Scalar] | None = None,
        expect: int | None = None,
        allowed: Allowed | None = None,
    ) -> MemCube:
        """Change a cube's header without a new version, and return the cube. None leaves a field as it is.

        access: all grants from now on; names may read. expires "" and half_life_days 0 take these away.
        metadata: these keys replace those of the same name. expect: the version that the caller saw.
        Raises NotFound, BadInput, TooLarge, Conflict.
        """
        fields = versions.given_fields(
            access=None if access is None else tuple(Grant(item) if isinstance(item, str) else item for item in access),
            tags=None if tags is None else tuple(tags),
            priority=priority,
            namespace=namespace,
            expires=expires,
            sensitivity=None if sensitivity is None else tuple(sensitivity),
            watermark=watermark,
        )
        if half_life_days is not None:
            fields["half_life_days"] = half_life_days or None

        def work(txn: Txn) -> MemCube:
            old = _found(txn, cube_id, allowed)
            versions.check_seen(old, expect)
            new = versions.edited(old, metadata or {}, fields)
            changes.rewrite(txn, old, new, actor, "edit")
            return new

        return self._change(work, adds=bool(metadata) or not fields.keys() <= _RULES)

    def prioritise(
        self, cube_id: str, priority: Priority, *, actor: str = "", allowed: Allowed | None = None
    ) -> MemCube:
        """Give a cube another priority; its K/V are pinned with it. actor: "" for its owner. Raises NotFound."""

        def work(txn: Txn) -> MemCube:
            old = _found(txn, cube_id, allowed)
            new = versions.edited(old, {}, {"priority": priority})
            changes.rewrite(txn, old, new, actor or old.owner, "edit")
            return new

        return self._change(work, adds=False)

    def rollback(self, cube_id: str, version: int, *, actor: str, allowed: Allowed | None = None) -> MemCube:
        """Make the content of an earlier version the newest one, as a new version.

        Raises NotFound, and Conflict where it is the newest already or the content cannot change.
        """

        def work(txn: Txn) -> MemCube:
            old = _found(txn, cube_id, allowed)
            then = tables.version_of(txn, cube_id, version)
            if then.version == old.version:
                raise Conflict(f"Memory {cube_id} is at version {version} already.")
            new = versions.returned(old, then, actor, "rollback")
            changes.supersede(txn, old, new, actor)
            return new

        rolled = self._change(work)
        self._bury()
        return rolled

    def transition(self, cube_id: str, state: State, *, actor: str, allowed: Allowed | None = None) -> MemCube:
        """Bring a cube into another state. Raises NotFound, and Conflict where the lifecycle does not allow it."""

        def work(txn: Txn) -> MemCube:
            cube = _found(txn, cube_id, allowed)
            states.check_transition(cube.header.state, state)
            return changes.transit(txn, cube, state, actor)

        return self._change(work, adds=False)

    def transition_all(
        self,
        cube_ids: Iterable[str],
        state: State,
        *,
        actor: str,
        only_if: Callable[[MemCube, Uses], bool] | None = None,
    ) -> list[MemCube]:
        """Bring cubes into another state, in one transaction; left out are those that are gone or may not change to it.

        only_if: asked inside the transaction with each cube and its stored uses, and may be asked twice.
        Returns the cubes that changed.
        """
        ids = [*dict.fromkeys(cube_ids)]

        def work(txn: Txn) -> list[MemCube]:
            cubes = [cube for cube in (tables.find(txn, checked_id(cube_id)) for cube_id in ids) if cube is not None]
            ready = [cube for cube in cubes if state in states.ALLOWED[cube.header.state]]
            chosen = [cube for cube in ready if only_if is None or only_if(cube, tables.uses_of(txn, cube.id))]
            return [changes.transit(txn, cube, state, actor) for cube in chosen]

        return self._change(work, adds=False) if ids else []

    def delete(self, cube_id: str, *, actor: str, snapshots: bool = False, allowed: Allowed | None = None) -> list[str]:
        """Remove a cube: texts, versions, index rows, manifest rows and KV files; an event without text stays.

        snapshots: copies in its owner's snapshots go too; otherwise they can bring the cube back.
        Returns the KV keys that are gone, for caches that hold their K/V. Raises NotFound.
        """

        def work(txn: Txn) -> list[str]:
            return _remove(txn, [_found(txn, cube_id, allowed)], actor, snapshots)

        gone = self._change(work, frees=True)
        self._bury()
        return gone

    def delete_owner(
        self, owner: str, *, actor: str, snapshots: bool = False, adapters: bool = True
    ) -> tuple[int, list[str]]:
        """Remove every cube that an owner has now, as `delete` does, and all other K/V made for them.

        adapters: and their adapters, which stay otherwise.

        Each cube goes wholly, in transactions of STEP cubes between which others write. What ends on the way is gone on
        with when the vault is opened next; what the owner had under way before is refused from the first transaction
        on. Returns the number of cubes and the KV keys that are gone.
        """
        return self._empty(Removal(owner, actor, now(), snapshots=snapshots, adapters=adapters))

    def _empty(self, removal: Removal) -> tuple[int, list[str]]:
        def work(step: Step, txn: Txn) -> tuple[int, list[str]]:
            gone = []
            removals.note(txn, removal, step)
            if step.first:
                forgotten.note(txn, removal.owner, whole=False)
                gone = manifest.doom_all(txn, manifest.pieces_of(txn, removal.owner))
            found = (tables.find(txn, cube_id) for cube_id in step.ids)
            cubes = [cube for cube in found if cube and removal.takes(cube)]
            return len(cubes), gone + _remove(txn, cubes, removal.actor, removal.snapshots)

        done = [*self._stepwise(self._ids_of(removal.owner), work)]
        self._bury()
        return sum(count for count, _ in done), [key for _, gone in done for key in gone]


def _remove(txn: Txn, cubes: Sequence[MemCube], actor: str, with_copies: bool) -> list[str]:
    """Remove cubes, and on demand their copies in snapshots; returns the KV keys that are gone."""
    gone = [record.key for cube in cubes for record in changes.remove(txn, cube, actor)]
    if with_copies:
        snapshots.strike(txn, cubes)
    return gone


def _found(txn: Txn, cube_id: str, allowed: Allowed | None) -> MemCube:
    """The cube, if the actor may change it. Raises NotFound and what `allowed` raises."""
    cube = tables.newest(txn, cube_id)
    if allowed is not None:
        allowed(cube)
    return cube
