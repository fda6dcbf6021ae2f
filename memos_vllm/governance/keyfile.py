"""The key file, a way to give keys to a server without touching its vault. It is TOML:

[[key]]
key = "sk-…"              # or sha256 = "64 hex digits of it"
user = "maya"             # this key speaks for maya only; without it, for any user (a service key)
roles = ["reader"]        # without it the key of a member
clearance = ["health"]    # sensitivity tags it may read; without it, all
"""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from memos_vllm.errors import BadInput, StartError
from memos_vllm.governance.identity import Bearer, Role, checked_user
from memos_vllm.governance.keys import sha256


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str | None = None
    sha256: str | None = None
    user: str = ""
    roles: tuple[Role, ...] = ()
    clearance: tuple[str, ...] | None = None


def read_key_file(path: Path) -> dict[str, Bearer]:
    """SHA-256 of each key → what it says of its holder. Raises StartError, which names the line or the field."""
    bearers: dict[str, Bearer] = {}
    for number, fields in enumerate(_tables(path), 1):
        where = f"{path}: [[key]] number {number}"
        entry = _entry(fields, where)
        secret = _secret(entry, where)
        if secret in bearers:
            raise StartError(f"{where} repeats a key; remove one.")
        bearers[secret] = Bearer(_user(fields, entry, where), entry.roles, entry.clearance)
    return bearers


def _tables(path: Path) -> list[Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"Cannot read the key file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise StartError(f"{path} is not TOML: {error}.") from error
    tables = data.pop("key", None)
    if data:
        raise StartError(f"{path}: unknown field {sorted(data)[0]!r}; it holds [[key]] tables only.")
    if not isinstance(tables, list) or not tables:
        raise StartError(f"{path} holds no [[key]] table; add one, or start without a key file.")
    return tables


def _entry(fields: Any, where: str) -> _Entry:
    try:
        entry = msgspec.convert(fields, _Entry)
    except msgspec.ValidationError as error:
        raise StartError(f"{where}: {error}.") from error
    if (entry.key is None) == (entry.sha256 is None):
        raise StartError(f"{where}: give either key or sha256.")
    return entry


def _secret(entry: _Entry, where: str) -> str:
    if entry.key is not None:
        if not entry.key.strip():
            raise StartError(f"{where}: field key is empty.")
        return sha256(entry.key)
    secret = (entry.sha256 or "").lower()
    if len(secret) != 64 or set(secret) - set("0123456789abcdef"):
        raise StartError(f"{where}: field sha256 must be 64 hex digits.")
    return secret


def _user(fields: dict[str, Any], entry: _Entry, where: str) -> str:
    try:
        return checked_user(entry.user) if "user" in fields else ""
    except BadInput as error:
        raise StartError(f"{where}: field user: {error}") from error
