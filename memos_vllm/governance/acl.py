"""Permission on one cube: who asks, for which cube, in what context.

Identity: the caller's principals, themselves and their groups. Object: the owner may do everything, others what the
cube grants to one of their principals. Context: what it is for, and which sensitivity tags the caller's key is cleared
for.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from memos_vllm.cube import MemCube, Right
from memos_vllm.vault.states import HOT

Purpose = Literal["api", "prompt", "export"]
"""`api`: shown over the memory routes; `prompt`: put before a model; `export`: leaves the memory directory."""


@dataclass(frozen=True)
class Context:
    """clearance: the sensitivity tags that may be read; None for all."""

    purpose: Purpose = "api"
    clearance: frozenset[str] | None = None

    def covers(self, cube: MemCube) -> bool:
        """Whether the clearance reaches every sensitivity tag of a cube."""
        return self.clearance is None or self.clearance.issuperset(cube.header.sensitivity)

    def admits(self, cube: MemCube, *, owned: bool) -> bool:
        """Whether the context lets a cube through that its reader has the right to.

        An expired cube is its owner's to look at, and is used for nothing else; archived and frozen cubes enter no
        prompt; caches of pipelines are never exported.
        """
        header = cube.header
        if not self.covers(cube):
            return False
        if (cube.expired() or header.state == "expired") and not (owned and self.purpose == "api"):
            return False
        if self.purpose == "prompt":
            return header.state in HOT
        return self.purpose == "api" or header.namespace != "pipeline"


ANY = Context()


def may_read(cube: MemCube, principals: str | Collection[str], context: Context = ANY) -> bool:
    return may(cube, principals, "read", context)


def may_write(cube: MemCube, principals: str | Collection[str], context: Context = ANY) -> bool:
    """Update it. Deleting it is the owner's alone."""
    return may(cube, principals, "write", context)


def may_share(cube: MemCube, principals: str | Collection[str], context: Context = ANY) -> bool:
    """Grant access to it, or put it into a bundle."""
    return may(cube, principals, "share", context)


def may(cube: MemCube, principals: str | Collection[str], right: Right, context: Context = ANY) -> bool:
    """Whether one of the principals has a right to a cube, in a context."""
    names = {principals} if isinstance(principals, str) else set(principals)
    owned = bool(cube.owner) and cube.owner in names
    granted = any(grant.principal in names and right in grant.rights for grant in cube.header.access)
    return (owned or granted) and context.admits(cube, owned=owned)
