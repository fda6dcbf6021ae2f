"""Who may change a memory, and take which step of a pipeline: asked in the transaction that does it."""

from __future__ import annotations

from memos_vllm.cube import MemCube
from memos_vllm.errors import Forbidden, NotFound
from memos_vllm.governance.acl import may, may_read, may_share, may_write
from memos_vllm.server.service import MemoryService
from memos_vllm.vault.editing import Allowed
from memos_vllm.vault.pipeline import AddStep, GrantStep, Permit, PurifyStep, Step, TransferStep, UpdateStep


def if_writable(service: MemoryService, user: str) -> Allowed:
    """What raises NotFound or Forbidden where the caller may not change a memory."""
    caller = service.caller(user)
    principals, context = caller.principals, caller.context("api")

    def allowed(cube: MemCube) -> None:
        _check_seen(cube, may_read(cube, principals, context))
        if not may_write(cube, principals, context):
            raise Forbidden(f"You may read memory {cube.id!r} but not change it; ask its owner for the right to write.")

    return allowed


def if_owned(service: MemoryService, user: str) -> Allowed:
    """What raises NotFound or Forbidden where a memory is neither the caller's nor of a group of theirs."""
    caller = service.caller(user)
    principals, context = caller.principals, caller.context("api")

    def allowed(cube: MemCube) -> None:
        _check_seen(cube, may_read(cube, principals, context))
        if cube.owner not in principals:
            raise Forbidden(f"Memory {cube.id!r} is not yours: only its owner may do this.")

    return allowed


def permit_for(service: MemoryService, user: str) -> Permit:
    """What raises NotFound or Forbidden where the caller may not take a step with a cube."""
    caller = service.caller(user)
    principals, context = caller.principals, caller.context("api")

    def permit(cube: MemCube, step: Step) -> None:
        if isinstance(step, AddStep):
            return
        _check_seen(cube, may_read(cube, principals, context))
        if isinstance(step, UpdateStep) and may_write(cube, principals, context):
            return
        if isinstance(step, GrantStep) and may_share(cube, principals, context):
            _check_passed_on(cube, step, principals)
            return
        if cube.owner not in principals:
            raise Forbidden(f"Memory {cube.id!r} is not yours: only its owner may {_named(step)} it.")
        if isinstance(step, TransferStep) and step.owner not in principals and "admin" not in caller.roles:
            raise Forbidden(f"You are not in a group {step.owner[:64]!r}: only an admin gives memories to others.")

    return permit


def _check_seen(cube: MemCube, seen: bool) -> None:
    """Raises NotFound, as the vault does where there is no such memory."""
    if not seen:
        raise NotFound(f"There is no memory {cube.id!r}.")


def _check_passed_on(cube: MemCube, step: GrantStep, principals: tuple[str, ...]) -> None:
    """Raises Forbidden where somebody who is not the owner gives more than they have, or takes rights away."""
    if cube.owner in principals:
        return
    held = {right for grant in cube.header.access if grant.principal == step.principal for right in grant.rights}
    if not held.issubset(step.rights) or step.principal == cube.owner:
        raise Forbidden(f"Memory {cube.id!r} is not yours: only its owner takes rights away.")
    missing = [right for right in step.rights if not may(cube, principals, right)]
    if missing:
        raise Forbidden(f"You may not {missing[0]} memory {cube.id!r}, so you cannot pass that right on.")


def _named(step: Step) -> str:
    return "purify" if isinstance(step, PurifyStep) else type(step).__name__.removesuffix("Step").lower()
