"""What one transaction does to the tables of `keys`: cubes with versions and index rows, events, uses."""

from collections.abc import Iterable

from memos_vllm.cube import MemCube, Plaintext, is_id, now
from memos_vllm.errors import Conflict, NotFound, VaultUnavailable
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Change, Damaged, Event, KVRecord, Record, Uses, decode, encode


def load(txn: Txn, database: str, key: bytes, kind: type[Record]) -> Record | None:
    """The record under a key, or None. Raises VaultUnavailable where it is damaged."""
    stored = txn.get(database, key)
    return None if stored is None else decoded(stored, kind, database, key)


def decoded(stored: bytes, kind: type[Record], database: str, key: bytes) -> Record:
    """A record. Raises VaultUnavailable where it is damaged."""
    try:
        return decode(stored, kind, database, key)
    except Damaged as error:
        raise VaultUnavailable(f"Record {key.hex()} in {database} is damaged ({error}); restore a backup.") from error


def store(txn: Txn, database: str, key: bytes, value: MemCube | Event | KVRecord | Uses | int) -> None:
    txn.put(database, key, encode(value, database, key))


def newest(txn: Txn, cube_id: str) -> MemCube:
    """Raises NotFound."""
    cube = load(txn, "cubes", keys.cube_key(cube_id), MemCube) if is_id(cube_id) else None
    if cube is None:
        raise NotFound(f"There is no memory {cube_id[:64]!r}.")
    return cube


def version_of(txn: Txn, cube_id: str, version: int) -> MemCube:
    """Raises NotFound."""
    cube = newest(txn, cube_id)
    if version == cube.version:
        return cube
    older = load(txn, "versions", keys.numbered(cube_id, version), MemCube) if 1 <= version < cube.version else None
    if older is None:
        raise NotFound(f"Memory {cube_id} has versions 1 to {cube.version}, not {version}.")
    return older


def cubes_under(txn: Txn, database: str, principal: str, *, after: str = "") -> Iterable[MemCube]:
    """Newest versions of the cubes in a principal's `owners` or `grants` rows, in id order."""
    prefix = keys.digest(principal)
    start = keys.of_principal(principal, after) if after else b""
    for key, _ in txn.scan(database, prefix, after=start):
        yield newest(txn, key[keys.ID_BYTES :].hex())


def insert(txn: Txn, cube: MemCube, actor: str) -> None:
    """A new cube with its index rows. Raises Conflict where the id is or was in use."""
    if txn.get("events", keys.numbered(cube.id, 1)) is not None:
        raise Conflict(f"The id {cube.id} is or was in use; leave it out to get a new one.")
    store(txn, "cubes", keys.cube_key(cube.id), cube)
    txn.put("owners", keys.of_principal(cube.owner, cube.id))
    for grant in cube.header.access:
        txn.put("grants", keys.of_principal(grant.principal, cube.id))
    log(txn, cube, "add", actor)


def replace(txn: Txn, old: MemCube, new: MemCube, actor: str) -> None:
    """The next version of a cube; owner and access stay."""
    store(txn, "versions", keys.numbered(old.id, old.version), old)
    store(txn, "cubes", keys.cube_key(new.id), new)
    log(txn, new, "update", actor)


def remove(txn: Txn, cube: MemCube, actor: str) -> None:
    """A cube's texts, versions, index rows and uses; an event stays."""
    key = keys.cube_key(cube.id)
    txn.delete("cubes", key)
    for row, _ in list(txn.scan("versions", key)):
        txn.delete("versions", row)
    txn.delete("owners", keys.of_principal(cube.owner, cube.id))
    for grant in cube.header.access:
        txn.delete("grants", keys.of_principal(grant.principal, cube.id))
    txn.delete("uses", key)
    log(txn, cube, "delete", actor)


def log(txn: Txn, cube: MemCube, operation: Change, actor: str) -> None:
    ordinal = cube.version + (operation == "delete")
    event = Event(cube_id=cube.id, version=cube.version, operation=operation, actor=actor, at=now())
    store(txn, "events", keys.numbered(cube.id, ordinal), event)


def events_of(txn: Txn, cube_id: str) -> list[Event]:
    """Oldest first, without texts."""
    rows = txn.scan("events", keys.cube_key(cube_id)) if is_id(cube_id) else ()
    return [decoded(stored, Event, "events", key) for key, stored in rows]


def texts_of(txn: Txn, cube_id: str) -> dict[int, str]:
    """Text of each version of a cube; empty where it was deleted."""
    key = keys.cube_key(cube_id)
    versions = [decoded(stored, MemCube, "versions", row) for row, stored in txn.scan("versions", key)]
    current = load(txn, "cubes", key, MemCube)
    held = [*versions, current] if current else versions
    return {cube.version: cube.payload.content for cube in held if isinstance(cube.payload, Plaintext)}


def bump(txn: Txn, principals: Iterable[str]) -> None:
    """Tell search caches that what these principals may read has changed."""
    for principal in set(principals):
        store(txn, "revisions", keys.digest(principal), revision(txn, principal) + 1)


def revision(txn: Txn, principal: str) -> int:
    return load(txn, "revisions", keys.digest(principal), int) or 0


def rewrite(txn: Txn, cube: MemCube) -> None:
    """The same version of a cube with another header; owner and access stay."""
    store(txn, "cubes", keys.cube_key(cube.id), cube)


def uses_of(txn: Txn, cube_id: str) -> Uses:
    return load(txn, "uses", keys.cube_key(cube_id), Uses) or Uses()


def put_uses(txn: Txn, cube_id: str, uses: Uses) -> None:
    """A cube that is gone meanwhile leaves nothing behind."""
    key = keys.cube_key(cube_id)
    if txn.get("cubes", key) is not None:
        store(txn, "uses", key, uses)
