"""The time machine: named snapshots of an owner's cubes, and what the cubes were at a time.

A snapshot holds copies, so it brings back cubes that were deleted since; it goes with its owner, and when dropped.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import msgspec

from memos_vllm.cube import MAX_PRINCIPAL_CHARS, MemCube, Namespace, State, checked_id, completed, now, timestamp
from memos_vllm.errors import BadInput, Conflict, NotFound
from memos_vllm.vault import adapters, audit, books, changes, keys, manifest, states, versions
from memos_vllm.vault.base import SLICE, Covers
from memos_vllm.vault.env import Txn
from memos_vllm.vault.kv import KVManifest
from memos_vllm.vault.records import Snapshot
from memos_vllm.vault.tables import cube_named, cubes_under, decoded, events_of, find, held, load, newest, store


class Restored(msgspec.Struct, frozen=True):
    """What a restore did. changed: cubes as they are now; revived: those that were gone; archived: those made since.

    kv_keys: K/V of texts that are no longer the newest, gone now.
    """

    changed: list[MemCube]
    revived: list[MemCube]
    archived: list[MemCube]
    unchanged: int
    kv_keys: list[str] = []


class TimeMachine(KVManifest):
    """The part of a vault that knows how things were."""

    def snapshot(
        self, owner: str, name: str, *, actor: str, namespace: Namespace | None = None, covers: Covers | None = None
    ) -> Snapshot:
        """Keep an owner's cubes as they are now, all or those of a namespace, under a name.

        covers: the cubes that the returned row counts.
        Raises BadInput, and Conflict where there is a snapshot of that name.
        """
        _check_name(name)

        def work(txn: Txn) -> Snapshot:
            if load(txn, "snapshots", key, Snapshot):
                raise Conflict(f"There is a snapshot {name!r}; drop it first, or choose another name.")
            for cube in list(_within(cubes_under(txn, "owners", owner), namespace)):
                books.put_cube(txn, "snapshot_cubes", key + keys.cube_key(cube.id), cube)
            kept = Snapshot(owner, name, namespace, now(), *_size(txn, key))
            store(txn, "snapshots", key, kept)
            audit.append(txn, actor=actor, action="snapshot", target=name, owner=owner, detail={"cubes": kept.cubes})
            return _counting(txn, kept, covers)

        key = _key(owner, name)
        return self._change(work, alone=True)

    def snapshots(self, owner: str, *, covers: Covers | None = None) -> list[Snapshot]:
        """An owner's snapshots, oldest first. covers: the cubes whose copies count."""

        def work(txn: Txn) -> list[Snapshot]:
            rows = txn.scan("snapshots", keys.digest(owner))
            kept = (decoded(stored, Snapshot, "snapshots", key) for key, stored in rows)
            found = (_counting(txn, snapshot, covers) for snapshot in kept)
            return sorted(found, key=lambda snapshot: (snapshot.created, snapshot.name))

        return self._env.read(work)

    def drop_snapshot(self, owner: str, name: str, *, actor: str) -> None:
        """Remove a snapshot with its copies. Raises NotFound."""

        def work(txn: Txn) -> None:
            drop(txn, named(txn, owner, name))
            audit.append(txn, actor=actor, action="snapshot.drop", target=name, owner=owner)

        self._change(work, frees=True)
        self._bury()

    def restore_snapshot(self, owner: str, name: str, *, actor: str, covers: Covers | None = None) -> Restored:
        """Bring back the content and state that the cubes of a snapshot had, as new versions.

        covers: the cubes that are touched; others stay as they are, or gone.

        Cubes deleted since are there again under their id, private; those made since are archived. Access
        and the other rules of a cube stay as they are now: a right that was taken away does not come back.
        Raises NotFound, and Conflict where a frozen or expired cube would have to change, or another adapter has taken
        the name of one that would come back. Adapters that come back are active in no version.
        """

        def work(txn: Txn) -> Restored:
            snapshot = named(txn, owner, name)
            restored = _Restore(txn, actor, covers).run(snapshot, list(cubes_in(txn, snapshot)))
            counts = {"changed": len(restored.changed), "revived": len(restored.revived)}
            audit.append(txn, actor=actor, action="snapshot.restore", target=name, owner=owner, detail=counts)
            return restored

        restored = self._change(work, alone=True)
        self._bury()
        return restored

    def copies_of(self, cubes: Sequence[MemCube]) -> int:
        """How many copies of cubes, which may be deleted, lie in their owners' snapshots."""

        def held(part: Sequence[MemCube], txn: Txn) -> int:
            return sum(1 for cube in part for _ in copies_of(txn, keys.digest(cube.owner), cube.id))

        parts = (cubes[first : first + SLICE] for first in range(0, len(cubes), SLICE))
        return sum(self._env.read(partial(held, part)) for part in parts)

    def as_of(
        self, owner: str, at: str, *, namespace: Namespace | None = None, limit: int | None = None, after: str = ""
    ) -> list[MemCube]:
        """An owner's cubes in the versions that were newest at a time, oldest cube first; `after` as for `Vault.list`.

        What was deleted since is gone, and a header that was edited without a new version is shown as edited.
        at: ISO-8601; a date alone is the beginning of that day, UTC. Raises BadInput.
        """
        if after:
            checked_id(after)
        moment = timestamp(at, "at")
        if not moment:
            raise BadInput("Name a time.")

        start = keys.of_principal(owner, after) if after else b""

        def then(txn: Txn, key: bytes, value: bytes) -> MemCube | None:
            return _at(txn, cube_named(txn, key, value), moment)

        rows = SLICE if limit is None else max(1, min(limit, SLICE))
        found = self._sliced("owners", then, under=keys.digest(owner), after=start, rows=rows)
        return list(islice(_within((cube for cube in found if cube is not None), namespace), limit))


def named(txn: Txn, owner: str, name: str) -> Snapshot:
    """Raises NotFound."""
    snapshot = load(txn, "snapshots", _key(owner, name), Snapshot)
    if snapshot is None:
        raise NotFound(f"There is no snapshot {name[:64]!r}.")
    return snapshot


def cubes_in(txn: Txn, snapshot: Snapshot) -> Iterator[MemCube]:
    """The copies of a snapshot, oldest cube first."""
    for key, stored in txn.scan("snapshot_cubes", _key(snapshot.owner, snapshot.name)):
        yield decoded(stored, MemCube, "snapshot_cubes", key)


def drop(txn: Txn, snapshot: Snapshot) -> None:
    key = _key(snapshot.owner, snapshot.name)
    for row in [row for row, _ in txn.scan("snapshot_cubes", key)]:
        books.drop_cube(txn, "snapshot_cubes", row, snapshot.owner)
    txn.delete("snapshots", key)


def drop_all(txn: Txn, owner: str) -> int:
    """Remove every snapshot of an owner; returns how many there were."""
    rows = txn.scan("snapshots", keys.digest(owner))
    dropped = [decoded(stored, Snapshot, "snapshots", key) for key, stored in rows]
    for snapshot in dropped:
        drop(txn, snapshot)
    return len(dropped)


def strike(txn: Txn, cubes: Iterable[MemCube]) -> int:
    """Remove the copies of cubes from their owners' snapshots; returns how many there were."""
    struck = []
    for cube in cubes:
        places = [key for key, _ in copies_of(txn, keys.digest(cube.owner), cube.id)]
        for key in places:
            books.drop_cube(txn, "snapshot_cubes", key, cube.owner)
        struck += places
    recount(txn, struck)
    return len(struck)


def purify(txn: Txn, cube: MemCube) -> None:
    """Let the copies of a cube in its owner's snapshots have its present content, and keep the state that they had."""
    copies = list(copies_of(txn, keys.digest(cube.owner), cube.id))
    for key, copy in copies:
        header = msgspec.structs.replace(cube.header, state=copy.header.state)
        books.put_cube(txn, "snapshot_cubes", key, MemCube(header, cube.payload))
    recount(txn, [key for key, _ in copies])


def copies_of(txn: Txn, owner_digest: bytes, cube_id: str) -> Iterator[tuple[bytes, MemCube]]:
    """Key and record of each copy of a cube in the snapshots of an owner."""
    for snapshot, _ in txn.scan("snapshots", owner_digest):
        key = snapshot + keys.cube_key(cube_id)
        copy = load(txn, "snapshot_cubes", key, MemCube)
        if copy is not None:
            yield key, copy


def recount(txn: Txn, copies: Iterable[bytes]) -> None:
    """Let the rows of snapshots say what they hold, after these copies changed; it reads each snapshot once."""
    for key in {copy[: -keys.ID_BYTES] for copy in copies}:
        snapshot = load(txn, "snapshots", key, Snapshot)
        if snapshot is not None:
            count, size = _size(txn, key)
            store(txn, "snapshots", key, msgspec.structs.replace(snapshot, cubes=count, bytes=size))


def problems(txn: Txn) -> Iterator[str]:
    """Copies without a snapshot, under another's key, or not counted; damaged rows are left to other checks."""
    for key, stored in txn.scan("snapshots"):
        snapshot = decoded(stored, Snapshot, "snapshots", key)
        if key != _key(snapshot.owner, snapshot.name):
            yield f"snapshots {key.hex()}: lies under another key"
        elif (snapshot.cubes, snapshot.bytes) != _size(txn, key):
            yield f"snapshots {key.hex()}: its copies are not those it counts"
    known = {key for key, _ in txn.scan("snapshots")}
    for key, _ in txn.scan("snapshot_cubes"):
        if key[: -keys.ID_BYTES] not in known:
            yield f"snapshot_cubes {key.hex()}: copy without a snapshot"


class _Restore:
    """One restore inside its transaction."""

    def __init__(self, txn: Txn, actor: str, covers: Covers | None) -> None:
        self._txn = txn
        self._actor = actor
        self._covers = covers
        self._done = Restored([], [], [], 0)

    def run(self, snapshot: Snapshot, copies: list[MemCube]) -> Restored:
        unchanged = 0
        for then in copies:
            if not is_covered(self._txn, then, self._covers):
                continue
            if self._txn.get("cubes", keys.cube_key(then.id)) is None:
                self._done.revived.append(self._revive(then))
            elif (cube := self._return(newest(self._txn, then.id), then)) is not None:
                self._done.changed.append(cube)
            else:
                unchanged += 1
        known = {cube.id for cube in copies}
        owned = _within(cubes_under(self._txn, "owners", snapshot.owner), snapshot.namespace)
        for cube in [cube for cube in owned if cube.id not in known]:
            if "archived" in states.ALLOWED[cube.header.state] and is_covered(self._txn, cube, self._covers):
                self._done.archived.append(self._in_state(cube, "archived"))
        return msgspec.structs.replace(self._done, unchanged=unchanged)

    def _revive(self, then: MemCube) -> MemCube:
        """A deleted cube, under its id; versions go on behind the event that says it was deleted."""
        last = events_of(self._txn, then.id)[-1]
        header = msgspec.structs.replace(
            then.header,
            version=last.version + 2,
            access=(),
            updated=max(now(), then.header.updated),
            operation="restore",
            author=self._actor,
            parents=(versions.reference(then),),
        )
        cube = completed(MemCube(header, then.payload))
        changes.enter(self._txn, cube, self._actor)
        adapters.revive(self._txn, cube)
        return cube

    def _return(self, cube: MemCube, then: MemCube) -> MemCube | None:
        """The cube with the content and state of then, or None where nothing had to change."""
        state = cube.header.state if cube.expired() else then.header.state
        if versions.same_content(cube, then) or adapters.is_spent(then):
            return None if state == cube.header.state else self._in_state(cube, state)
        new = versions.returned(cube, then, self._actor, "restore")
        new = MemCube(msgspec.structs.replace(new.header, state=state), new.payload)
        if new.payload != cube.payload:
            self._done.kv_keys.extend(record.key for record in manifest.rows_of(self._txn, cube.id))
        changes.supersede(self._txn, cube, new, self._actor)
        return new

    def _in_state(self, cube: MemCube, state: State) -> MemCube:
        return changes.transit(self._txn, cube, state, self._actor)


def _at(txn: Txn, cube: MemCube, moment: str) -> MemCube | None:
    """The version of a cube that was newest at a moment, or None where it was not there then."""
    past = [event for event in events_of(txn, cube.id) if event.at <= moment]
    if not past or past[-1].operation == "delete":
        return None
    return held(txn, cube.id, past[-1].version)


def _within(cubes: Iterable[MemCube], namespace: Namespace | None) -> Iterator[MemCube]:
    return (cube for cube in cubes if namespace is None or cube.header.namespace == namespace)


def _size(txn: Txn, key: bytes) -> tuple[int, int]:
    """Number and bytes of a snapshot's copies."""
    sizes = [len(stored) for _, stored in txn.scan("snapshot_cubes", key)]
    return len(sizes), sum(sizes)


def is_covered(txn: Txn, then: MemCube, covers: Covers | None) -> bool:
    """Whether a cube is, both as it was and as it is now where it is still there."""
    if covers is None:
        return True
    cube = find(txn, then.id)
    return covers(then) and (cube is None or covers(cube))


def _counting(txn: Txn, snapshot: Snapshot, covers: Covers | None) -> Snapshot:
    """A snapshot with the numbers of the copies that are covered."""
    if covers is None:
        return snapshot
    rows = txn.scan("snapshot_cubes", _key(snapshot.owner, snapshot.name))
    copies = ((decoded(stored, MemCube, "snapshot_cubes", key), len(stored)) for key, stored in rows)
    sizes = [size for copy, size in copies if is_covered(txn, copy, covers)]
    return msgspec.structs.replace(snapshot, cubes=len(sizes), bytes=sum(sizes))


def _key(owner: str, name: str) -> bytes:
    return keys.digest(owner) + keys.digest(name)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_PRINCIPAL_CHARS or not name.isprintable() or name != name.strip():
        raise BadInput(f"A snapshot's name has 1 to {MAX_PRINCIPAL_CHARS} printable characters, no blanks at its ends.")
