"""Who a request speaks for: API keys, and the claims in its headers and body.

The key file is TOML:

    [[key]]
    key = "sk-…"              # or sha256 = "64 hex digits of it"
    user = "maya"             # this key speaks for maya only; without it, for any user (a service key)
"""

import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from memos_vllm.cube import checked_principal
from memos_vllm.errors import BadInput, Forbidden, StartError, Unauthorized

_FIELDS = {"key", "sha256", "user"}


@dataclass(frozen=True)
class Caller:
    """bound: the API key names this user; otherwise the request claims to be them."""

    user: str
    bound: bool


@dataclass(frozen=True)
class KeyRing:
    """API keys by their SHA-256, each with the user it is bound to ("" for a service key)."""

    users: dict[str, str] = field(default_factory=dict, repr=False)
    required: bool = False

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """The ring of a key file, whose keys are then required; without a file, an empty ring that asks for none.

        Raises StartError, which names the line or the field.
        """
        if path is None:
            return cls()
        entries = _entries(path)
        users: dict[str, str] = {}
        for number, entry in enumerate(entries, 1):
            secret, user = _parsed(entry, f"{path}: [[key]] number {number}")
            if secret in users:
                raise StartError(f"{path}: [[key]] number {number} repeats a key; remove one.")
            users[secret] = user
        return cls(users, required=True)

    def user_of(self, bearer: str | None) -> str | None:
        """The user a key is bound to, "" for a service key, None for a key that is not known.

        Raises Unauthorized where keys are required and this is none of them.
        """
        user = self.users.get(_sha256(bearer)) if bearer else None
        if user is None and self.required:
            raise Unauthorized("This API key is not known." if bearer else "Send an API key: Authorization: Bearer …")
        return user


def resolve(ring: KeyRing, *, bearer: str | None, header_user: str | None, body_user: str | None) -> Caller | None:
    """The caller: the key's own user, else the header's, else the body's; None where nobody is named.

    Raises Unauthorized; Forbidden where a claim differs from the key's user; BadInput for a malformed user id.
    """
    bound = ring.user_of(bearer)
    claims = [checked_principal(claim) for claim in (header_user, body_user) if claim is not None]
    if not bound:
        return Caller(claims[0], bound=False) if claims else None
    for claim in claims:
        if claim != bound:
            raise Forbidden(f"This API key is bound to one user and may not speak for {claim!r}.")
    return Caller(bound, bound=True)


def _entries(path: Path) -> list[Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"Cannot read the key file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise StartError(f"{path} is not TOML: {error}.") from error
    entries = data.pop("key", None)
    if data:
        raise StartError(f"{path}: unknown field {sorted(data)[0]!r}; it holds [[key]] tables only.")
    if not isinstance(entries, list) or not entries:
        raise StartError(f"{path} holds no [[key]] table; add one, or start without a key file.")
    return entries


def _parsed(entry: Any, where: str) -> tuple[str, str]:
    """SHA-256 of the key, and its user."""
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise StartError(f"{where}: every field must be a string.")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise StartError(f"{where}: unknown field {unknown[0]!r}; use key or sha256, and user.")
    if ("key" in entry) == ("sha256" in entry):
        raise StartError(f"{where}: give either key or sha256.")
    return _secret(entry, where), _user(entry, where)


def _secret(entry: dict[str, str], where: str) -> str:
    if "key" in entry:
        if not entry["key"].strip():
            raise StartError(f"{where}: field key is empty.")
        return _sha256(entry["key"])
    secret = entry["sha256"].lower()
    if len(secret) != 64 or set(secret) - set("0123456789abcdef"):
        raise StartError(f"{where}: field sha256 must be 64 hex digits.")
    return secret


def _user(entry: dict[str, str], where: str) -> str:
    try:
        return checked_principal(entry["user"]) if "user" in entry else ""
    except BadInput as error:
        raise StartError(f"{where}: field user: {error}") from error


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
