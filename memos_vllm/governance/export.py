"""Exports: a user's memories as they leave the memory directory, without sensitive content and with a watermark.

Each export is an entry of the registry, so that it stands in the audit log, and a mark in a leaked text leads to it.
"""

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from memos_vllm.cube import MemCube, checked_principal, now
from memos_vllm.governance import watermark
from memos_vllm.governance.acl import Context
from memos_vllm.governance.sensitive import find_sensitive, redact
from memos_vllm.vault import Vault

KIND = "export"
POLICY = "policy"

_PAGE = 200
_MIN_DIGITS = 7


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """One export: whose memories went to whom, and when."""

    user: str
    recipient: str
    made: str
    redacted: bool
    marked: bool


class WatermarkKey(msgspec.Struct, frozen=True):
    """The key of a vault's marks."""

    key: bytes


def export(
    vault: Vault,
    user: str,
    *,
    recipient: str,
    actor: str,
    clearance: frozenset[str] | None = None,
    redacted: bool = True,
    marked: bool = True,
) -> tuple[str, Iterator[dict[str, Any]]]:
    """Note an export in the registry, and return its number (8 hex digits) and the cubes in their outside form.

    A user's own cubes, without those that expired, that are caches of pipelines, or that `clearance` does not cover.
    Whom they are shared with, who wrote them and what they derive from are left out. Raises BadInput.
    """
    checked_principal(recipient)
    number = _new_number(vault)
    key = _key(vault, actor) if marked else b""
    note = Export(user=user, recipient=recipient, made=now(), redacted=redacted, marked=marked)
    vault.put_entry(KIND, _name(number), note, actor=actor, owner=user)
    context = Context("export", clearance)
    cubes = (cube for cube in _cubes(vault, user) if context.admits(cube, owned=True))
    return _name(number), (_outside(cube, number, key, redacted=redacted) for cube in cubes)


def trace(vault: Vault, text: str) -> dict[str, Export | None]:
    """The exports that a text bears marks of: number → export, None for one whose entry was forgotten."""
    stored = vault.get_entry(POLICY, "watermark", WatermarkKey)
    numbers = watermark.numbers_in(text, stored.key) if stored else []
    return {_name(number): vault.get_entry(KIND, _name(number), Export) for number in numbers}


def _cubes(vault: Vault, user: str) -> Iterator[MemCube]:
    after = ""
    while page := vault.list(user, limit=_PAGE, after=after):
        yield from page
        after = page[-1].id


def _outside(cube: MemCube, number: int, key: bytes, *, redacted: bool) -> dict[str, Any]:
    data = cube.to_json()
    meta, payload = data["meta"], data["payload"]
    meta |= {"access": [], "author": "", "parents": []}
    meta["watermark"] = _name(number) if key else ""
    if redacted:
        for field in ("owner", "tags", "metadata", "fingerprint", "source"):
            meta[field] = _redacted(meta[field])
    if "content" in payload:
        content = _redacted(payload["content"]) if redacted else payload["content"]
        payload["content"] = _marked(content, number, key) if key else content
    return data


def _redacted(value: Any) -> Any:
    """A JSON value without sensitive content; a number that is sensitive becomes its kind.

    Marks of an earlier export go first: they would stand between the parts of a number or an address.
    """
    match value:
        case str():
            return redact(watermark.strip(value)).text
        case dict():
            return {_redacted(name): _redacted(held) for name, held in value.items()}
        case list():
            return [_redacted(held) for held in value]
        case int() if not isinstance(value, bool) and value >= 10**_MIN_DIGITS and find_sensitive(str(value)):
            return redact(str(value)).text
    return value


def _marked(value: Any, number: int, key: bytes) -> Any:
    """A JSON value with a mark in every text."""
    match value:
        case str():
            return watermark.embed(value, number, key)
        case dict():
            return {name: _marked(held, number, key) for name, held in value.items()}
        case list():
            return [_marked(held, number, key) for held in value]
    return value


def _new_number(vault: Vault) -> int:
    while vault.get_entry(KIND, _name(number := secrets.randbits(32)), Export) is not None:
        pass
    return number


def _name(number: int) -> str:
    return f"{number:08x}"


def _key(vault: Vault, actor: str) -> bytes:
    stored = vault.get_entry(POLICY, "watermark", WatermarkKey)
    if stored is None:
        stored = WatermarkKey(secrets.token_bytes(32))
        vault.put_entry(POLICY, "watermark", stored, actor=actor)
    return stored.key
