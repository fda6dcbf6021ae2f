"""Who a request speaks for: its API key, and the claims in its headers and body."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from memos_vllm.cube import checked_principal
from memos_vllm.errors import BadInput, Forbidden
from memos_vllm.governance.acl import Context, Purpose

GROUP_PREFIX = "group:"
"""What a group's principal begins with; no user's name does."""

OPERATOR_PREFIX = "operator:"
RESERVED = (GROUP_PREFIX, OPERATOR_PREFIX, "memos-vllm")
"""Beginnings of names that stand in grants and in the audit log for others than users."""

Role = Literal["reader", "auditor", "admin"]
Action = Literal["read", "write", "audit"]

ALLOWED: Mapping[Role | Literal["member"], frozenset[Action]] = {
    "member": frozenset(("read", "write")),
    "reader": frozenset(("read",)),
    "auditor": frozenset(("read", "audit")),
    "admin": frozenset(("read", "write", "audit")),
}
"""What a key of a role may do. A key without roles is a member's; `audit` is to read everybody's audit log."""


@dataclass(frozen=True)
class Bearer:
    """What an API key says of its holder. user: whom it is bound to, "" for a service key, which names its user."""

    user: str = ""
    roles: tuple[Role, ...] = ()
    clearance: tuple[str, ...] | None = None
    key_id: str = ""


NOBODY = Bearer()
"""Without a key."""


@dataclass(frozen=True)
class Caller:
    """bound: the API key names this user; otherwise the request claims to be them.

    clearance: the sensitivity tags that the key may read; None for all.
    """

    user: str
    bound: bool
    groups: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    clearance: frozenset[str] | None = None

    @property
    def principals(self) -> tuple[str, ...]:
        """Every name that rights may be granted to and that this caller answers to, their own first."""
        return (self.user, *map(group_principal, self.groups))

    def may(self, action: Action) -> bool:
        return any(action in ALLOWED[role] for role in self.roles or ("member",))

    def context(self, purpose: Purpose) -> Context:
        return Context(purpose, self.clearance)


def caller_of(bearer: Bearer, *, header_user: str | None, body_user: str | None) -> Caller | None:
    """The caller, without groups: the key's own user, else the header's, else the body's; None where nobody is named.

    Raises Forbidden where a claim differs from the key's user, BadInput for a malformed user id.
    """
    claims = [checked_user(claim) for claim in (header_user, body_user) if claim is not None]
    for claim in claims:
        if bearer.user and claim != bearer.user:
            raise Forbidden(f"This API key is bound to one user and may not speak for {claim!r}.")
    user = bearer.user or next(iter(claims), "")
    if not user:
        return None
    clearance = None if bearer.clearance is None else frozenset(bearer.clearance)
    return Caller(user, bound=bool(bearer.user), roles=bearer.roles, clearance=clearance)


def checked_user(name: str) -> str:
    """A user's name, or BadInput where it is malformed or could be a group's."""
    checked_principal(name)
    if name.startswith(RESERVED):
        raise BadInput(f"The user id {name!r} begins like a group's or an operator's name; choose another.")
    return name


def group_principal(name: str) -> str:
    """The name under which rights are granted to a group."""
    return GROUP_PREFIX + name
