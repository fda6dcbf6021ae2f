"""A vault as schema 1 wrote it, row by row: what migrations are tested with. Nothing here uses the package."""

import hashlib
import json
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import xxhash

DATABASES = ("cubes", "versions", "events", "owners", "grants", "revisions", "kv", "kv_cubes", "doomed", "pins", "uses")
TEA, JAM, NOTE = ("018f" + "0" * 27 + digit for digit in "123")
AT = "2025-04-10T12:00:00.000000Z"
LATER = "2025-04-11T12:00:00.000000Z"

Rows = dict[tuple[str, bytes], bytes]


def digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def record(database: str, key: bytes, value: Any) -> bytes:
    body = msgspec.msgpack.encode(value)
    return b"\x01" + xxhash.xxh3_64(f"{database}:1:".encode() + key + body).digest() + body


def cube(cube_id: str, text: str, *, owner: str, version: int = 1, **header: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": cube_id,
        "created": AT,
        "updated": AT,
        "source": "",
        "origin": "user_input",
        "semantic_type": "fact",
        "tags": [],
        "model": "",
        "metadata": {},
        "owner": owner,
        "access": [],
        "expires": "",
        "half_life_days": None,
        "priority": "mid",
        "sensitivity": [],
        "watermark": "",
        "licence": None,
        "accesses": 0,
        "last_access": "",
        "fingerprint": "",
        "version": version,
        "parents": [],
        "operation": "add" if version == 1 else "overwrite",
        "author": owner,
        "state": "generated",
    }
    return {"header": meta | header, "payload": {"type": "plaintext", "content": text, "format": "text"}}


def event(cube_id: str, version: int, operation: str, actor: str) -> dict[str, Any]:
    return {
        "cube_id": cube_id,
        "version": version,
        "operation": operation,
        "actor": actor,
        "at": AT,
        "old_text": None,
        "new_text": None,
    }


def kv_row() -> dict[str, Any]:
    return {
        "key": "k1",
        "owner": "maya",
        "cube_id": TEA,
        "cube_version": 2,
        "path": "kv/k1.safetensors",
        "tokens": 5,
        "bytes": 10,
        "checksum": "",
        "created": AT,
        "build_seconds": 0.5,
        "deviation": b"",
        "pinned": True,
        "kind": "cube",
    }


def rows() -> Rows:
    """maya: a pinned cube that bo may read, changed once, with K/V; and a deleted one. bo: an expiring cube."""
    tea, jam, note = (bytes.fromhex(cube_id) for cube_id in (TEA, JAM, NOTE))
    shared: dict[str, Any] = {"access": [{"principal": "bo", "rights": ["read"]}], "priority": "pinned"}
    held: dict[tuple[str, bytes], Any] = {
        ("cubes", tea): cube(TEA, "Maya drinks green tea", owner="maya", version=2, updated=LATER, **shared),
        ("versions", tea + (1).to_bytes(4)): cube(TEA, "Maya drinks coffee", owner="maya", **shared),
        ("cubes", note): cube(NOTE, "The key is under the mat", owner="bo", expires="2030-01-01"),
        ("events", tea + (1).to_bytes(4)): event(TEA, 1, "add", "maya"),
        ("events", tea + (2).to_bytes(4)): event(TEA, 2, "update", "maya"),
        ("events", jam + (1).to_bytes(4)): event(JAM, 1, "add", "maya"),
        ("events", jam + (2).to_bytes(4)): event(JAM, 1, "delete", "maya"),
        ("events", note + (1).to_bytes(4)): event(NOTE, 1, "add", "bo"),
        ("revisions", digest("maya")): 4,
        ("revisions", digest("bo")): 3,
        ("revisions", digest("\0bytes of the manifest")): 10,
        ("revisions", digest("\0changes of the manifest")): 1,
        ("kv", digest("k1")): kv_row(),
        ("uses", tea): {"count": 3, "heat": 2.5, "at": 1000.0},
    }
    plain: Rows = {
        ("owners", digest("maya") + tea): b"",
        ("owners", digest("bo") + note): b"",
        ("grants", digest("bo") + tea): b"",
        ("kv_cubes", tea + digest("k1")): b"",
        ("pins", digest("k1")): b"k1",
    }
    return {place: record(*place, value) for place, value in held.items()} | plain


def make(path: Path, held: Rows | None = None) -> None:
    """The memory directory of these rows."""
    (path / "vault").mkdir(parents=True)
    (path / "kv").mkdir()
    (path / "kv" / "k1.safetensors").write_bytes(b"K" * 10)
    (path / "memos.json").write_text(json.dumps({"format": "memos-vault", "schema": 1}))
    write(path, rows() if held is None else held)


def write(path: Path, held: Rows) -> None:
    env = lmdb.open(str(path / "vault"), max_dbs=len(DATABASES), map_size=1 << 24)
    try:
        handles = {name: env.open_db(name.encode()) for name in DATABASES}
        with env.begin(write=True) as txn:
            for (database, key), value in held.items():
                txn.put(key, value, db=handles[database])
    finally:
        env.close()


def read(path: Path) -> Rows:
    """Every row of these databases."""
    env = lmdb.open(str(path / "vault"), max_dbs=64)
    try:
        handles = {name: env.open_db(name.encode(), create=False) for name in DATABASES}
        with env.begin() as txn:
            return {(name, key): value for name, handle in handles.items() for key, value in txn.cursor(db=handle)}
    finally:
        env.close()
