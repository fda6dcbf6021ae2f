"""Forgetting a principal: everything of theirs goes, their name goes from what stays, and what is left is counted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from memos_vllm.cube import MemCube, now
from memos_vllm.vault import (
    audit,
    books,
    changes,
    forgotten,
    index,
    keys,
    manifest,
    pseudonyms,
    registry,
    removals,
    snapshots,
)
from memos_vllm.vault.base import STEP
from memos_vllm.vault.env import Txn
from memos_vllm.vault.kv import KVManifest
from memos_vllm.vault.records import AdapterRecord, Event, KVRecord, Record, Snapshot
from memos_vllm.vault.removals import Removal, Step
from memos_vllm.vault.tables import cubes_under, decoded, events_of, find, store, versions_of

_BY_PRINCIPAL = (
    *("owners", "grants", "mentions", "revisions", "statistics", "snapshots", "snapshot_cubes"),
    *("adapter_names", "adapter_default"),
)
"""Databases whose keys begin with a principal's digest."""


class ForgetReport(msgspec.Struct, frozen=True):
    """What went.

    versions: older versions of the cubes; kv_keys: for caches that hold their K/V; index_rows: of the search index
    grants: rights to cubes of others; mentions: cubes of others and of nobody any more that named them
    registry: entries that belonged to them or named them; log_names: names taken out of the audit log
    """

    cubes: int
    versions: int
    kv_keys: tuple[str, ...]
    index_rows: int
    snapshots: int
    grants: int
    mentions: int
    registry: int
    log_names: int


class Forgetting(KVManifest):
    """The part of a vault that forgets a principal and shows that it did."""

    def forget(self, principal: str, *, actor: str) -> ForgetReport:
        """Remove all that belongs to a principal, and their name from all that stays.

        In one transaction, after others that take their cubes, STEP at a time so that others write between them: what
        ends on the way is gone on with when the vault is opened next. What they had under way is refused from the first
        one on.

        Cubes, versions, snapshots, adapters, K/V, index rows, uses, grants in both directions, registry entries. Events
        and audit entries stay, without the name. KV files and adapters' are unlinked when this returns. Where the actor
        is the principal, the audit entry names nobody. What other threads and processes have under way for them is
        refused when they want to store it; for that, a digest of the name stays for an hour. No row can be read any
        more; bytes of removed rows may lie in free pages of the data file until it is written anew (`backup.compact`).
        """
        rows = self._env.read(lambda txn: index.rows_of(txn, principal))
        removal, gone, ids = Removal(principal, actor, now(), whole=True), _Gone(), self._ids_of(principal)
        if len(ids) > STEP:
            for part in self._stepwise(ids, partial(_remove, removal)):
                gone = gone.more(part)
        report = self._change(lambda txn: _forget(txn, removal, gone, rows), frees=True, adds=False)
        self._bury()
        return report

    def traces_of(self, principal: str) -> dict[str, int]:
        """How many rows of each database belong to a principal or name them; empty after `forget`.

        It costs what is theirs, however large the vault: `vault check` shows that the rows which name somebody are all
        listed under them. Names inside texts are content and not looked for.
        """
        return self._env.read(lambda txn: {name: count for name, count in _own(txn, principal).items() if count})

    def traces_anywhere(self, principal: str) -> dict[str, int]:
        """The same, found by reading every row of the vault."""
        return self._env.read(lambda txn: {name: count for name, count in _traces(txn, principal).items() if count})

    def sweep_forgotten(self) -> None:
        """Let go of the digests of those who were forgotten a while ago."""
        if self._env.read(forgotten.any_over):
            self._writable().write(forgotten.sweep)


class _Gone(NamedTuple):
    """What went of a principal's cubes."""

    cubes: int = 0
    versions: int = 0
    kv_keys: tuple[str, ...] = ()

    def more(self, other: "_Gone") -> "_Gone":
        return _Gone(self.cubes + other.cubes, self.versions + other.versions, self.kv_keys + other.kv_keys)


def _remove(removal: Removal, step: Step, txn: Txn) -> _Gone:
    """Remove some of a principal's cubes; `_forget` is to follow."""
    if step.first:
        removals.begin(txn, removal)
        forgotten.note(txn, removal.owner, whole=True)
    found = (find(txn, cube_id) for cube_id in step.ids)
    return _remove_all(txn, [cube for cube in found if cube and removal.takes(cube)], removal.actor)


def _remove_all(txn: Txn, cubes: Sequence[MemCube], actor: str) -> _Gone:
    versions = sum(len(versions_of(txn, cube)) - 1 for cube in cubes)
    records = [record for cube in cubes for record in changes.remove(txn, cube, actor, logged=False)]
    return _Gone(len(cubes), versions, tuple(record.key for record in records))


def _forget(txn: Txn, removal: Removal, before: _Gone, index_rows: int) -> ForgetReport:
    principal, actor = removal.owner, removal.actor
    removals.end(txn, removal)
    forgotten.note(txn, principal, whole=True)
    pieces = tuple(manifest.doom_all(txn, manifest.pieces_of(txn, principal)))
    gone = before.more(_remove_all(txn, list(cubes_under(txn, "owners", principal)), actor))
    dropped = snapshots.drop_all(txn, principal)
    grants = _leave(txn, principal, actor)
    mentions = _unname(txn, principal)
    index.drop(txn, principal)
    txn.delete("revisions", keys.digest(principal))
    txn.delete("statistics", keys.digest(principal))
    detail = {"cubes": gone.cubes, "versions": gone.versions, "snapshots": dropped, "grants": grants}
    audit.append(txn, actor=actor, action="forget", owner=principal, detail=detail)
    removed, names = registry.forget(txn, principal), pseudonyms.forget(txn, principal)
    kv_keys = pieces + gone.kv_keys
    return ForgetReport(gone.cubes, gone.versions, kv_keys, index_rows, dropped, grants, mentions, removed, names)


def _leave(txn: Txn, principal: str, actor: str) -> int:
    """Take back every right to cubes of others; returns how many cubes those were."""
    granted = list(cubes_under(txn, "grants", principal))
    for cube in granted:
        changes.rewrite(txn, cube, _without(cube, principal), actor, "edit")
    return len(granted)


def _unname(txn: Txn, principal: str) -> int:
    """Take the name out of events, versions and copies of cubes; returns how many cubes those were."""
    rows, copies = list(txn.scan("mentions", keys.digest(principal))), []
    for key, owner in rows:
        cube_id = key[keys.ID_BYTES :].hex()
        _unname_events(txn, principal, cube_id)
        _unname_cubes(txn, principal, cube_id)
        for place, copy in _copies(txn, owner, cube_id):
            books.put_cube(txn, "snapshot_cubes", place, _without(copy, principal))
            copies.append(place)
        txn.delete("mentions", key)
    snapshots.recount(txn, copies)
    return len(rows)


def _copies(txn: Txn, owner: bytes, cube_id: str) -> list[tuple[bytes, MemCube]]:
    """Copies of a cube in snapshots of its owner, of whom a row of `mentions` holds the pseudonym."""
    name = pseudonyms.name_of(txn, owner)
    return [] if name is None else list(snapshots.copies_of(txn, keys.digest(name), cube_id))


def _unname_events(txn: Txn, principal: str, cube_id: str) -> None:
    for event in events_of(txn, cube_id):
        if event.actor == principal:
            number = event.version + (event.operation == "delete")
            store(txn, "events", keys.numbered(cube_id, number), msgspec.structs.replace(event, actor=""))


def _unname_cubes(txn: Txn, principal: str, cube_id: str) -> None:
    cube = find(txn, cube_id)
    for held in versions_of(txn, cube) if cube else ():
        unnamed = _without(held, principal)
        if unnamed == held:
            continue
        newest = held is cube
        key = keys.cube_key(cube_id) if newest else keys.numbered(cube_id, held.version)
        books.put_cube(txn, "cubes" if newest else "versions", key, unnamed)


def _without(cube: MemCube, principal: str) -> MemCube:
    """A cube that neither names a principal as author nor grants them anything."""
    header = cube.header
    access = tuple(grant for grant in header.access if grant.principal != principal)
    author = "" if header.author == principal else header.author
    return MemCube(msgspec.structs.replace(header, access=access, author=author), cube.payload)


def _own(txn: Txn, principal: str) -> Counter[str]:
    """What lies under a principal's digest, and what their rows of `owners` and `mentions` lead to."""
    found = _listed(txn, principal)
    found["audit"] = pseudonyms.traces(txn, principal)
    cubes = list(cubes_under(txn, "owners", principal))
    found["cubes"], found["versions"] = len(cubes), sum(len(versions_of(txn, cube)) - 1 for cube in cubes)
    found["kv"] = sum(len(manifest.rows_of(txn, cube.id)) for cube in cubes) + found["kv_cubes"]
    for key, owner in txn.scan("mentions", keys.digest(principal)):
        cube_id = key[keys.ID_BYTES :].hex()
        found["events"] += sum(event.actor == principal for event in events_of(txn, cube_id))
        cube = find(txn, cube_id)
        found["versions"] += sum(_names(held, principal) for held in (versions_of(txn, cube) if cube else ()))
        found["snapshot_cubes"] += sum(_names(copy, principal) for _, copy in _copies(txn, owner, cube_id))
    found["events"] += sum(event.actor == principal for cube in cubes for event in events_of(txn, cube.id))
    return found


def _traces(txn: Txn, principal: str) -> Counter[str]:
    found = _listed(txn, principal)
    for database in books.CUBE_DATABASES:
        found[database] = max(found[database], sum(_names(cube, principal) for cube in _all(txn, database, MemCube)))
    found["events"] = sum(event.actor == principal for event in _all(txn, "events", Event))
    found["snapshots"] = sum(snapshot.owner == principal for snapshot in _all(txn, "snapshots", Snapshot))
    found["kv"] = sum(record.owner == principal for record in _all(txn, "kv", KVRecord))
    found["adapters"] = sum(record.owner == principal for record in _all(txn, "adapters", AdapterRecord))
    digest = keys.digest(principal)
    found["mentions"] += sum(digest in value for _, value in txn.scan("mentions"))
    found["audit"] = pseudonyms.traces(txn, principal) + pseudonyms.bearing(txn, principal)
    return found


def _listed(txn: Txn, principal: str) -> Counter[str]:
    """Rows whose keys begin with a principal's digest, and those of the small databases."""
    found = Counter({name: sum(1 for _ in txn.scan(name, keys.digest(principal))) for name in _BY_PRINCIPAL})
    found["doomed"] = sum(record.owner == principal for record in _all(txn, "doomed", KVRecord))
    found["kv_cubes"] = sum(1 for _ in txn.scan("kv_cubes", keys.pieces_of(principal)))
    found["index"] = index.rows_of(txn, principal)
    found["registry"] = registry.traces(txn, principal)
    return found


def _names(cube: MemCube, principal: str) -> bool:
    return principal == cube.owner or principal in books.named_in(cube)


def _all(txn: Txn, database: str, kind: type[Record]) -> Iterator[Record]:
    return (decoded(stored, kind, database, key) for key, stored in txn.scan(database))
