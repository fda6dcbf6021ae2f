"""The registry: small typed rows for governance (keys, groups, quotas), kept and changed in transactions, audited.

    registry   digest(kind) + digest(name)   16 + 16   entry

An entry names its owner where it belongs to a principal, and goes when that principal is forgotten.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.vault import audit, keys
from memos_vllm.vault.base import Opened
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Damaged, decode, encode

REVISION = b"registry"
PERSONAL = ("members", "recipient")
"""Fields of values that name principals: a list, a mapping by name, or one name."""

Value = TypeVar("Value", bound=msgspec.Struct)


class Entry(msgspec.Struct, frozen=True):
    """A row: kind, name and owner ("" for none), and the value as msgpack."""

    kind: str
    name: str
    owner: str
    value: bytes


def put(txn: Txn, kind: str, name: str, value: msgspec.Struct, *, actor: str, owner: str = "") -> None:
    """Write an entry and note it in the audit log; one that is there is replaced. Raises BadInput."""
    if not kind or not name:
        raise BadInput("An entry of the registry has a kind and a name.")
    _store(txn, Entry(kind, name, owner, msgspec.msgpack.encode(value)))
    audit.append(txn, actor=actor, action=f"{kind}.put", target=name, owner=owner)


def get(txn: Txn, kind: str, name: str, value_type: type[Value]) -> Value | None:
    """The value of an entry, or None. Raises VaultUnavailable."""
    key = _key(kind, name)
    stored = txn.get("registry", key)
    return None if stored is None else _value(_decoded(key, stored), value_type)


def of_kind(txn: Txn, kind: str, value_type: type[Value]) -> dict[str, Value]:
    """Name → value of every entry of a kind. Raises VaultUnavailable."""
    rows = (_decoded(key, stored) for key, stored in txn.scan("registry", keys.digest(kind)))
    return {entry.name: _value(entry, value_type) for entry in rows}


def delete(txn: Txn, kind: str, name: str, *, actor: str) -> bool:
    """Remove an entry and note it in the audit log; False where there was none."""
    key = _key(kind, name)
    stored = txn.get("registry", key)
    if stored is None:
        return False
    _remove(txn, key)
    audit.append(txn, actor=actor, action=f"{kind}.delete", target=name, owner=_decoded(key, stored).owner)
    return True


def forget(txn: Txn, principal: str) -> int:
    """Remove a principal's entries, and their name from PERSONAL fields of others; returns the entries met."""
    met = 0
    for key, entry in list(_all(txn)):
        if entry.owner == principal:
            _remove(txn, key)
        elif kept := _without(entry, principal):
            _store(txn, kept)
        else:
            continue
        met += 1
    return met


def traces(txn: Txn, principal: str) -> int:
    """How many entries belong to a principal or name them."""
    entries = (entry for _, entry in _all(txn))
    return sum(entry.owner == principal or _without(entry, principal) is not None for entry in entries)


def revision(txn: Txn) -> int:
    """A number that grows with every change of the registry."""
    stored = txn.get("meta", REVISION)
    return 0 if stored is None else int.from_bytes(stored)


def problems(txn: Txn) -> Iterator[str]:
    """Entries that do not decode, or lie under another's key."""
    for key, stored in txn.scan("registry"):
        try:
            entry = decode(stored, Entry, "registry", key)
        except Damaged as damage:
            yield f"registry {key.hex()}: {damage}"
            continue
        if key != _key(entry.kind, entry.name):
            yield f"registry {entry.kind} {entry.name!r}: lies under another key"


class Registry(Opened):
    """The part of a vault that keeps typed entries."""

    def put_entry(self, kind: str, name: str, value: msgspec.Struct, *, actor: str, owner: str = "") -> None:
        """Store an entry, in place of one of that kind and name. owner: whom it belongs to and is forgotten with."""
        self._writable().write(lambda txn: put(txn, kind, name, value, actor=actor, owner=owner))

    def get_entry(self, kind: str, name: str, value_type: type[Value]) -> Value | None:
        return self._env.read(lambda txn: get(txn, kind, name, value_type))

    def entries(self, kind: str, value_type: type[Value]) -> dict[str, Value]:
        """Name → value of every entry of a kind."""
        return self._env.read(lambda txn: of_kind(txn, kind, value_type))

    def delete_entry(self, kind: str, name: str, *, actor: str) -> bool:
        """Remove an entry; False where there was none."""
        return self._writable().write(lambda txn: delete(txn, kind, name, actor=actor))

    def registry_revision(self) -> int:
        """A number that grows with every change of any entry."""
        return self._env.read(revision)


def _key(kind: str, name: str) -> bytes:
    return keys.digest(kind) + keys.digest(name)


def _store(txn: Txn, entry: Entry) -> None:
    key = _key(entry.kind, entry.name)
    txn.put("registry", key, encode(entry, "registry", key))
    _touch(txn)


def _remove(txn: Txn, key: bytes) -> None:
    txn.delete("registry", key)
    _touch(txn)


def _touch(txn: Txn) -> None:
    txn.put("meta", REVISION, (revision(txn) + 1).to_bytes(8))


def _all(txn: Txn) -> Iterator[tuple[bytes, Entry]]:
    return ((key, _decoded(key, stored)) for key, stored in txn.scan("registry"))


def _decoded(key: bytes, stored: bytes) -> Entry:
    try:
        return decode(stored, Entry, "registry", key)
    except Damaged as error:
        raise VaultUnavailable(f"Entry {key.hex()} of the registry is damaged ({error}); restore a backup.") from error


def _value(entry: Entry, value_type: type[Value]) -> Value:
    try:
        return msgspec.msgpack.decode(entry.value, type=value_type)
    except msgspec.MsgspecError as error:
        raise VaultUnavailable(
            f"The {entry.kind} {entry.name!r} in the registry is of another form ({error}); delete and make it anew."
        ) from error


def _without(entry: Entry, principal: str) -> Entry | None:
    """The entry without the principal in its PERSONAL fields, or None where they do not name them."""
    held = msgspec.msgpack.decode(entry.value)
    if not isinstance(held, dict):
        return None
    kept = {name: _less(value, principal) if name in PERSONAL else value for name, value in held.items()}
    return None if kept == held else msgspec.structs.replace(entry, value=msgspec.msgpack.encode(kept))


def _less(value: Any, principal: str) -> Any:
    match value:
        case dict():
            return {name: held for name, held in value.items() if name != principal}
        case list():
            return [name for name in value if name != principal]
    return "" if value == principal else value
