"""What one transaction reads of the tables of `keys`, and the rows that stand alone: events, revisions, uses."""

from collections.abc import Iterable

import msgspec

from memos_vllm.cube import MemCube, Plaintext, is_id
from memos_vllm.errors import NotFound, VaultUnavailable
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Damaged, Event, Record, Uses, decode, encode

CLOCK = keys.digest("\0clock of the revisions")
"""Row of `revisions`; no principal's name begins with a control character."""


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


def store(txn: Txn, database: str, key: bytes, value: msgspec.Struct | int) -> None:
    txn.put(database, key, encode(value, database, key))


def find(txn: Txn, cube_id: str) -> MemCube | None:
    return load(txn, "cubes", keys.cube_key(cube_id), MemCube) if is_id(cube_id) else None


def newest(txn: Txn, cube_id: str) -> MemCube:
    """Raises NotFound."""
    cube = find(txn, cube_id)
    if cube is None:
        raise NotFound(f"There is no memory {cube_id[:64]!r}.")
    return cube


def version_of(txn: Txn, cube_id: str, version: int) -> MemCube:
    """Raises NotFound."""
    found = held(txn, cube_id, version)
    if found is None:
        kept = [cube.version for cube in versions_of(txn, newest(txn, cube_id))]
        raise NotFound(f"Memory {cube_id} has versions {kept[0]} to {kept[-1]}, not {version}.")
    return found


def held(txn: Txn, cube_id: str, version: int) -> MemCube | None:
    """One version of a cube, or None where it is not kept."""
    cube = find(txn, cube_id)
    if cube is None or not 1 <= version < cube.version:
        return cube if cube is not None and version == cube.version else None
    return load(txn, "versions", keys.numbered(cube_id, version), MemCube)


def versions_of(txn: Txn, newest_version: MemCube) -> list[MemCube]:
    """Every version of a cube, oldest first."""
    rows = txn.scan("versions", keys.cube_key(newest_version.id))
    return [*(decoded(stored, MemCube, "versions", key) for key, stored in rows), newest_version]


def cubes_under(txn: Txn, database: str, principal: str, *, after: str = "") -> Iterable[MemCube]:
    """Newest versions of the cubes in a principal's `owners` or `grants` rows, in id order."""
    prefix = keys.digest(principal)
    start = keys.of_principal(principal, after) if after else b""
    for key, value in txn.scan(database, prefix, after=start):
        yield cube_named(txn, key, value)


def cube_named(txn: Txn, key: bytes, _: bytes) -> MemCube:
    """The newest version of the cube that a row of `owners` or `grants` names. Raises NotFound."""
    return newest(txn, key[keys.ID_BYTES :].hex())


def all_cubes(txn: Txn, after: bytes = b"") -> Iterable[MemCube]:
    """Newest versions of the cubes of all owners, in id order."""
    for key, stored in txn.scan("cubes", after=after):
        yield decoded(stored, MemCube, "cubes", key)


def log(txn: Txn, event: Event) -> None:
    """Add an event to a cube's; its number follows the last one's."""
    store(txn, "events", keys.numbered(event.cube_id, event.version + (event.operation == "delete")), event)


def events_of(txn: Txn, cube_id: str) -> list[Event]:
    """Oldest first, without texts."""
    rows = txn.scan("events", keys.cube_key(cube_id)) if is_id(cube_id) else ()
    return [decoded(stored, Event, "events", key) for key, stored in rows]


def with_texts(txn: Txn, events: list[Event]) -> list[Event]:
    """The events of one cube with the texts before and after each, where they are kept."""
    current = find(txn, events[0].cube_id)
    held = versions_of(txn, current) if current else []
    texts = {cube.version: cube.payload.content for cube in held if isinstance(cube.payload, Plaintext)}
    return [
        msgspec.structs.replace(event, old_text=texts.get(event.version - 1), new_text=texts.get(event.version))
        if event.operation != "delete"
        else event
        for event in events
    ]


def bump(txn: Txn, principals: Iterable[str]) -> None:
    """Tell search caches that what these principals may read has changed. A number is never given out twice."""
    names = set(principals)
    clock = 1 + max(load(txn, "revisions", CLOCK, int) or 0, *(revision(txn, name) for name in names), 0)
    for name in names:
        store(txn, "revisions", keys.digest(name), clock)
    store(txn, "revisions", CLOCK, clock)


def revision(txn: Txn, principal: str) -> int:
    return load(txn, "revisions", keys.digest(principal), int) or 0


def uses_of(txn: Txn, cube_id: str) -> Uses:
    return load(txn, "uses", keys.cube_key(cube_id), Uses) or Uses()


def put_uses(txn: Txn, cube_id: str, uses: Uses) -> None:
    """A cube that is gone meanwhile leaves nothing behind."""
    key = keys.cube_key(cube_id)
    if txn.get("cubes", key) is not None:
        store(txn, "uses", key, uses)
