"""What one transaction does to the KV manifest: rows, their index by cube or owner, pins, and two running totals."""

from collections.abc import Iterable

import msgspec

from memos_vllm.cube import MemCube
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import KVRecord
from memos_vllm.vault.states import HOT
from memos_vllm.vault.tables import decoded, load, store

BYTES = keys.digest("\0bytes of the manifest")
CHANGES = keys.digest("\0changes of the manifest")
"""Rows of `revisions`; no principal's name begins with a control character."""


def put(txn: Txn, record: KVRecord) -> None:
    """A row belongs to one cube: a second cube with the same K/V takes it over."""
    key = keys.digest(record.key)
    before = load(txn, "kv", key, KVRecord)
    if before is not None:
        _take_out(txn, before)
    txn.delete("doomed", key)
    store(txn, "kv", key, record)
    if place := _place(record):
        txn.put("kv_cubes", place)
    if record.pinned:
        txn.put("pins", key, record.key.encode())
    _add(txn, record.bytes)


def doom(txn: Txn, record: KVRecord) -> None:
    """Take a row out and note its files for removal, so that a crash cannot leave them behind."""
    _take_out(txn, record)
    store(txn, "doomed", keys.digest(record.key), record)


def forget(txn: Txn, record: KVRecord) -> None:
    """The files of a doomed row are gone."""
    txn.delete("doomed", keys.digest(record.key))


def row(txn: Txn, kv_key: str) -> KVRecord | None:
    return load(txn, "kv", keys.digest(kv_key), KVRecord)


def rows(txn: Txn, database: str = "kv") -> list[KVRecord]:
    """All rows of `kv` or `doomed`."""
    return [decoded(stored, KVRecord, database, key) for key, stored in txn.scan(database)]


def rows_of(txn: Txn, cube_id: str) -> list[KVRecord]:
    """Rows of a cube."""
    return _under(txn, keys.cube_key(cube_id))


def pieces_of(txn: Txn, owner: str) -> list[KVRecord]:
    """Rows that belong to an owner but to no cube."""
    return _under(txn, keys.pieces_of(owner))


def doom_all(txn: Txn, records: Iterable[KVRecord]) -> list[str]:
    """Doom rows; returns their keys."""
    doomed = list(records)
    for record in doomed:
        doom(txn, record)
    return [record.key for record in doomed]


def supersede(txn: Txn, new: MemCube, *, same_text: bool) -> None:
    """A cube has a new version: K/V of the same text go on serving it, others are of no use any more."""
    for record in rows_of(txn, new.id):
        if same_text:
            put(txn, msgspec.structs.replace(record, cube_version=new.version))
        else:
            doom(txn, record)


def pin(txn: Txn, cube: MemCube) -> None:
    """Let the rows of a cube have its priority."""
    for record in rows_of(txn, cube.id):
        put(txn, msgspec.structs.replace(record, pinned=is_pinned(cube)))


def is_pinned(cube: MemCube) -> bool:
    """Whether a cube's K/V are to stay in memory: one that enters no prompt has no use for them."""
    return cube.header.priority == "pinned" and cube.header.state in HOT


def pinned(txn: Txn) -> set[str]:
    return {key.decode() for _, key in txn.scan("pins")}


def total_bytes(txn: Txn) -> int:
    """Bytes of all rows; a vault that was made before the total was kept is summed up."""
    total = load(txn, "revisions", BYTES, int)
    return sum(record.bytes for record in rows(txn)) if total is None else total


def changes(txn: Txn) -> int:
    """A number that grows with every change of the manifest."""
    return load(txn, "revisions", CHANGES, int) or 0


def _place(record: KVRecord) -> bytes | None:
    """Key of the row's index entry; K/V of nobody have none."""
    if record.cube_id:
        return keys.of_cube(record.cube_id, record.key)
    return keys.pieces_of(record.owner) + keys.digest(record.key) if record.owner else None


def _under(txn: Txn, prefix: bytes) -> list[KVRecord]:
    found = [key[keys.ID_BYTES :] for key, _ in txn.scan("kv_cubes", prefix)]
    records = (load(txn, "kv", key, KVRecord) for key in found)
    return [record for record in records if record is not None]


def _take_out(txn: Txn, record: KVRecord) -> None:
    key = keys.digest(record.key)
    if not txn.delete("kv", key):
        return
    if place := _place(record):
        txn.delete("kv_cubes", place)
    txn.delete("pins", key)
    _add(txn, -record.bytes)


def _add(txn: Txn, size: int) -> None:
    """Call it after the row was written or taken out."""
    total = load(txn, "revisions", BYTES, int)
    store(txn, "revisions", BYTES, total_bytes(txn) if total is None else total + size)
    store(txn, "revisions", CHANGES, changes(txn) + 1)
