"""Records as bytes: schema version (1 byte), checksum (8 bytes), msgpack.

The checksum is xxh3_64 over database name, key, schema byte and msgpack, so that a record which was altered or which
lies under another record's key is found.
"""

import math
from typing import Literal, TypeVar

import msgspec
import xxhash

from memos_vllm.cube import Namespace, Operation

SCHEMA = 2
_HEAD_BYTES = 9

Change = Literal["add", "update", "delete"]
KVKind = Literal["cube", "scaffold", "piece"]
Packed = bytes  # the builtin, whose name KVRecord gives to a field

USE_HALF_LIFE = 86_400.0
"""Seconds after which a use counts half."""


class Damaged(Exception):
    """A stored record does not decode. The vault turns it into VaultUnavailable, `check` into a problem."""


class Event(msgspec.Struct, frozen=True):
    """One change of a cube. Texts are None for other payloads, and for every event of a deleted cube.

    actor: "" for someone who was forgotten
    how: the operation that made the version; None for a delete, and where schema 1 did not keep it
    parents: the versions it was made from, as `id@version`
    """

    cube_id: str
    version: int
    operation: Change
    actor: str
    at: str
    old_text: str | None = None
    new_text: str | None = None
    how: Operation | None = None
    parents: tuple[str, ...] = ()


class KVRecord(msgspec.Struct, frozen=True):
    """A row of the KV manifest: where the K/V of one cube version lie, and what they cost.

    cube_id: "" for K/V that belong to no memory
    kind: `cube`; `scaffold`, which has no owner; `piece`, a prompt text that its owner repeats
    path: the KV file, relative to the memory directory, under `kv/`; with tensor parallelism rank 0's, and each rank's
        file lies beside it under a name that begins with `key.`
    bytes: size of these files together; build_seconds: time of the prefill that made them
    deviation: one byte a token, how far its K/V move behind another text; empty where that was not measured
    pinned: kept in memory while it fits, and never evicted from disk
    """

    key: str
    owner: str
    cube_id: str
    cube_version: int
    path: str
    tokens: int
    bytes: int
    checksum: str
    created: str
    build_seconds: float
    deviation: Packed = b""
    pinned: bool = False
    kind: KVKind = "cube"


class Uses(msgspec.Struct, frozen=True):
    """How often a cube entered a prompt. heat: uses, each halved every USE_HALF_LIFE, as of `at` (Unix seconds)."""

    count: int = 0
    heat: float = 0.0
    at: float = 0.0

    def heat_at(self, now: float) -> float:
        """The heat of `now`; a clock that went back cools nothing."""
        return self.heat * math.exp2(-max(now - self.at, 0.0) / USE_HALF_LIFE)

    def more(self, count: int, now: float) -> "Uses":
        return Uses(self.count + count, self.heat_at(now) + count, max(now, self.at))


class AdapterRecord(msgspec.Struct, frozen=True):
    """What the versions of an adapter have in common.

    active: the version that requests get which name none, 0 where there is none
    previous: the versions that were active before, the last one last
    """

    cube_id: str
    owner: str
    name: str
    active: int = 0
    previous: tuple[int, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """What an owner's cubes take up.

    bytes: of stored cubes with their older versions and the copies in snapshots, and of the files of adapters; a cube
    counts once more for each grant, for what it adds to the search index of whom it is shared with.
    """

    cubes: int = 0
    bytes: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """A named state of an owner's cubes. namespace: None where it spans all of them; bytes: of the stored copies."""

    owner: str
    name: str
    namespace: Namespace | None
    created: str
    cubes: int
    bytes: int


Record = TypeVar("Record", bound=msgspec.Struct | int)


def encode(value: msgspec.Struct | int, database: str, key: bytes) -> bytes:
    body = msgspec.msgpack.encode(value)
    return bytes([SCHEMA]) + _checksum(database, key, SCHEMA, body) + body


def decode(stored: bytes, kind: type[Record], database: str, key: bytes) -> Record:
    """The record. Raises Damaged, which says what is wrong with it."""
    body = _body(stored, database, key, SCHEMA)
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Damaged(str(error)) from error


def rewritten(stored: bytes, database: str, key: bytes, *, schema: int) -> bytes:
    """A record of an older schema with the mark and checksum of this one, its msgpack untouched. Raises Damaged."""
    body = _body(stored, database, key, schema)
    return bytes([SCHEMA]) + _checksum(database, key, SCHEMA, body) + body


def _body(stored: bytes, database: str, key: bytes, wanted: int) -> bytes:
    if len(stored) <= _HEAD_BYTES:
        raise Damaged(f"{len(stored)} bytes are no record")
    schema, checksum, body = stored[0], stored[1:_HEAD_BYTES], stored[_HEAD_BYTES:]
    if checksum != _checksum(database, key, schema, body):
        raise Damaged("checksum mismatch")
    if schema != wanted:
        raise Damaged(f"schema {schema}, this version reads {wanted}")
    return body


def _checksum(database: str, key: bytes, schema: int, body: bytes) -> bytes:
    state = xxhash.xxh3_64(f"{database}:{schema}:".encode())
    state.update(key)
    state.update(body)
    return state.digest()
