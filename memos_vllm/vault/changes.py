"""What one transaction does to a cube: its record, older versions, index rows, books, events and the audit log."""

from collections.abc import Mapping

import msgspec

from memos_vllm.cube import MemCube, Operation, Scalar, State, now
from memos_vllm.errors import Conflict
from memos_vllm.vault import adapters, audit, books, index, keys, manifest, tables
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Change, Event, KVRecord

_UPDATES: tuple[Operation, ...] = ("overwrite", "append")


def add(txn: Txn, cube: MemCube, actor: str) -> None:
    """A new cube. Raises Conflict where the id is or was in use, BadInput for an adapter (see `Vault.put_adapter`)."""
    adapters.refuse(cube)
    if txn.get("events", keys.numbered(cube.id, 1)) is not None:
        raise Conflict(f"The id {cube.id} is or was in use; leave it out to get a new one.")
    enter(txn, cube, actor)


def enter(txn: Txn, cube: MemCube, actor: str) -> None:
    """A cube that is not in the vault now, under an id that may have been."""
    books.put_cube(txn, "cubes", keys.cube_key(cube.id), cube)
    txn.put("owners", keys.of_principal(cube.owner, cube.id))
    for grant in cube.header.access:
        txn.put("grants", keys.of_principal(grant.principal, cube.id))
    books.schedule(txn, None, cube)
    index.insert(txn, cube)
    tables.bump(txn, cube.readers())
    _note(txn, cube, "add", actor)
    _log(txn, cube, actor, cube.header.operation, {"version": cube.version})


def supersede(txn: Txn, old: MemCube, new: MemCube, actor: str) -> None:
    """The next version of a cube; owner and access stay. K/V of another text go, and what was purified for good."""
    if new.header.operation == "purify":
        _drop_versions(txn, old)
    else:
        books.put_cube(txn, "versions", keys.numbered(old.id, old.version), old)
    books.put_cube(txn, "cubes", keys.cube_key(new.id), new)
    books.schedule(txn, old, new)
    index.replace(txn, old, new)
    manifest.supersede(txn, new, same_text=old.payload == new.payload)
    adapters.follow(txn, new)
    tables.bump(txn, new.readers())
    _note(txn, new, "update", actor)
    operation = new.header.operation
    if operation in _UPDATES:
        _log(txn, new, actor, "update", {"version": new.version, "operation": operation})
    else:
        _log(txn, new, actor, operation, {"version": new.version})


def rewrite(txn: Txn, old: MemCube, new: MemCube, actor: str, action: str) -> None:
    """The same version of a cube with another header; the owner stays."""
    if old == new:
        return
    books.put_cube(txn, "cubes", keys.cube_key(new.id), new)
    before, after = set(old.readers()), set(new.readers())
    for principal in before - after:
        txn.delete("grants", keys.of_principal(principal, new.id))
    for principal in after - before:
        txn.put("grants", keys.of_principal(principal, new.id))
    books.schedule(txn, old, new)
    index.replace(txn, old, new)
    if manifest.is_pinned(old) != manifest.is_pinned(new):
        manifest.pin(txn, new)
    adapters.share(txn, old, new)
    tables.bump(txn, before | after)
    audit.append(
        txn,
        actor=actor,
        action=action,
        target=new.id,
        owner=new.owner,
        principals=sorted(before ^ after),
        detail=_difference(old, new),
    )


def transit(txn: Txn, cube: MemCube, state: State, actor: str) -> MemCube:
    """The cube in another state; whether the lifecycle allows it is checked before."""
    new = MemCube(msgspec.structs.replace(cube.header, state=state), cube.payload)
    rewrite(txn, cube, new, actor, "transition")
    return new


def remove(txn: Txn, cube: MemCube, actor: str, *, logged: bool = True) -> list[KVRecord]:
    """A cube with its texts, versions, index rows and uses; events without text stay. Returns its K/V, doomed now."""
    key = keys.cube_key(cube.id)
    books.drop_cube(txn, "cubes", key, cube.owner)
    _drop_versions(txn, cube)
    txn.delete("owners", keys.of_principal(cube.owner, cube.id))
    for grant in cube.header.access:
        txn.delete("grants", keys.of_principal(grant.principal, cube.id))
    txn.delete("uses", key)
    books.schedule(txn, cube, None)
    index.remove(txn, cube)
    adapters.remove(txn, cube)
    tables.bump(txn, cube.readers())
    books.mention(txn, cube.id, cube.owner, {cube.owner})
    _note(txn, cube, "delete", actor)
    if logged:
        _log(txn, cube, actor, "delete", {"version": cube.version})
    records = manifest.rows_of(txn, cube.id)
    manifest.doom_all(txn, records)
    return records


def _drop_versions(txn: Txn, cube: MemCube) -> None:
    for row, _ in list(txn.scan("versions", keys.cube_key(cube.id))):
        books.drop_cube(txn, "versions", row, cube.owner)


def _note(txn: Txn, cube: MemCube, operation: Change, actor: str) -> None:
    header = cube.header
    event = Event(cube_id=cube.id, version=cube.version, operation=operation, actor=actor, at=now())
    if operation != "delete":
        event = msgspec.structs.replace(event, how=header.operation, parents=header.parents)
    tables.log(txn, event)
    books.mention(txn, cube.id, cube.owner, {actor} - {cube.owner, ""})


def _log(txn: Txn, cube: MemCube, actor: str, action: str, detail: Mapping[str, Scalar]) -> None:
    principals = [grant.principal for grant in cube.header.access] if action == "add" else []
    audit.append(
        txn, actor=actor, action=action, target=cube.id, owner=cube.owner, principals=principals, detail=detail
    )


def _difference(old: MemCube, new: MemCube) -> dict[str, Scalar]:
    """Which header fields changed, and the states between which the cube went."""
    names = [name for name in new.header.__struct_fields__ if getattr(old.header, name) != getattr(new.header, name)]
    if names == ["state"]:
        return {"from": old.header.state, "to": new.header.state}
    return {"fields": " ".join(names)}
