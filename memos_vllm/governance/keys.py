"""API keys of the vault: made once, shown once, kept as a hash.

A key is `mk_<id>_<secret>`: 48 bits that name its row in the registry, and 256 random bits. A hash without salt is
enough for those: nobody can try them out.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence

import msgspec

from memos_vllm.cube import now, timestamp
from memos_vllm.errors import BadInput, NotFound, Unauthorized
from memos_vllm.governance.identity import Bearer, Role, checked_user
from memos_vllm.vault import Vault

KIND = "key"
POLICY = "policy"
_PREFIX = "mk"


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. user: "" for a service key; expires, revoked: times, "" for none."""

    sha256: str
    user: str = ""
    name: str = ""
    roles: tuple[Role, ...] = ()
    clearance: tuple[str, ...] | None = None
    created: str
    expires: str = ""
    revoked: str = ""

    def state(self) -> str:
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= now() else "live"


class KeyPolicy(msgspec.Struct, frozen=True):
    """required: every request needs a key. It stays when the last key goes: losing keys opens no door."""

    required: bool = False


def create(
    vault: Vault,
    *,
    user: str = "",
    name: str = "",
    roles: Sequence[Role] = (),
    clearance: Sequence[str] | None = None,
    expires: str = "",
    actor: str,
) -> tuple[str, str]:
    """Make a key and return its id and the key itself, which is kept nowhere. From then on the vault requires keys.

    Raises BadInput.
    """
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = f"{_PREFIX}_{key_id}_{secret}"
    row = ApiKey(
        sha256=sha256(key),
        user=checked_user(user) if user else "",
        name=name,
        roles=tuple(roles),
        clearance=None if clearance is None else tuple(clearance),
        created=now(),
        expires=_moment(expires),
    )
    if not required(vault):
        require(vault, True, actor=actor)
    vault.put_entry(KIND, key_id, row, actor=actor, owner=user)
    return key_id, key


def revoke(vault: Vault, key_id: str, *, actor: str) -> ApiKey:
    """Make a key worthless and return its row, which stays for the record. Raises NotFound."""
    row = vault.get_entry(KIND, key_id, ApiKey)
    if row is None:
        raise NotFound(f"There is no key {key_id[:64]!r}; `memos-vllm key list` shows the ids.")
    revoked = msgspec.structs.replace(row, revoked=row.revoked or now())
    if revoked != row:
        vault.put_entry(KIND, key_id, revoked, actor=actor, owner=row.user)
    return revoked


def listed(vault: Vault) -> dict[str, ApiKey]:
    """Every key by its id, oldest first."""
    return dict(sorted(vault.entries(KIND, ApiKey).items(), key=lambda item: item[1].created))


def required(vault: Vault) -> bool:
    return (vault.get_entry(POLICY, KIND, KeyPolicy) or KeyPolicy()).required


def require(vault: Vault, needed: bool, *, actor: str) -> None:
    """Say whether requests need a key."""
    vault.put_entry(POLICY, KIND, KeyPolicy(needed), actor=actor)


def id_of(key: str) -> str | None:
    """The id in a key of a vault; None for other keys."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    return key_id if prefix == _PREFIX and secret else None


def bearer_of(key: str, key_id: str, row: ApiKey) -> Bearer | None:
    """Who holds a key; None where it is another. Raises Unauthorized for a revoked or expired key."""
    if not hmac.compare_digest(sha256(key), row.sha256):
        return None
    if (state := row.state()) != "live":
        raise Unauthorized(f"This API key is {state}; ask for a new one.")
    return Bearer(row.user, row.roles, row.clearance, key_id)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _moment(expires: str) -> str:
    """When a key ends. Raises BadInput, which names the option."""
    try:
        return timestamp(expires, "expires")
    except BadInput:
        raise BadInput(f"--expires {expires[:64]!r} is not an ISO-8601 date or time.") from None
