"""A memory's life: its versions, states, origin, and who else has access."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query

from memos_vllm.cube import MemCube, checked_principal
from memos_vllm.errors import BadInput, NotFound
from memos_vllm.governance.acl import may_write
from memos_vllm.server.routes.common import (
    COMMON,
    CONFLICT,
    MISSING,
    TOO_LARGE,
    MemoryId,
    MemoryRoute,
    Service,
    User,
    UserId,
    owned,
    shown,
    writable,
)
from memos_vllm.server.routes.permits import if_owned, if_writable, permit_for
from memos_vllm.server.schemas import Memory, grants
from memos_vllm.server.schemas_life import (
    AccessBody,
    AccessRequest,
    AncestorBody,
    Provenance,
    RollbackRequest,
    ShareRequest,
    StateRequest,
    VersionBody,
    Versions,
)
from memos_vllm.server.service import MemoryService
from memos_vllm.vault import Ancestor
from memos_vllm.vault.pipeline import GrantStep

router = APIRouter(
    prefix="/v1/memories/{memory_id}", tags=["life"], responses=COMMON | MISSING, route_class=MemoryRoute
)


@router.get("/versions", response_model=Versions)
def list_versions(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> Versions:
    """Every version of a memory, oldest first. For those who may change it: an old text may be no reader's business."""
    writable(service, user, memory_id)
    return Versions(results=[VersionBody.of(cube) for cube in service.cleared(user, service.vault.versions(memory_id))])


@router.post("/rollback", response_model=Memory, responses=CONFLICT | TOO_LARGE, response_model_exclude_none=True)
def roll_back(memory_id: MemoryId, body: RollbackRequest, service: Service, user: User) -> Memory:
    """Bring an older version's content back, as a new version."""
    writable(service, user, memory_id)
    if not service.cleared(user, [service.vault.get(memory_id, version=body.version)]):
        raise NotFound(f"Memory {memory_id} has no version {body.version} that you may read.")
    cube = service.update(
        memory_id,
        lambda: service.vault.rollback(memory_id, body.version, actor=user, allowed=if_writable(service, user)),
    )
    return shown(service, cube, user, event="UPDATE")


@router.put("/state", response_model=Memory, responses=CONFLICT, response_model_exclude_none=True)
def set_state(memory_id: MemoryId, body: StateRequest, service: Service, user: User) -> Memory:
    """Move a memory to another state of its life: activated, merged, archived, expired or frozen.

    Only generated and activated memories are searched and enter prompts. Archived and frozen ones can be activated
    again; a way that does not exist is refused with 409, which names both states.
    """
    owned(service, user, memory_id)
    cube = service.transition(memory_id, body.state, actor=user, allowed=if_owned(service, user))
    return shown(service, cube, user, event="UPDATE")


@router.get("/provenance", response_model=Provenance)
def provenance(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> Provenance:
    """What a memory comes from, the nearest first, as far as the caller may read it."""
    service.readable(user, memory_id)
    seen = (_seen(service, user, item) for item in service.vault.provenance(memory_id))
    return Provenance(results=[AncestorBody.of(item) for item in seen if item is not None])


@router.get("/access", response_model=AccessBody)
def get_access(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> AccessBody:
    """Who else may do what with a memory of one's own."""
    return AccessBody.of(owned(service, user, memory_id))


@router.put("/access", response_model=AccessBody, responses=TOO_LARGE)
def set_access(memory_id: MemoryId, body: AccessRequest, service: Service, user: User) -> AccessBody:
    """Say who has access from now on; everybody else loses it."""
    owned(service, user, memory_id)
    allowed = if_owned(service, user)
    return AccessBody.of(service.vault.edit(memory_id, actor=user, access=grants(body.access), allowed=allowed))


@router.post("/access", response_model=AccessBody, responses=TOO_LARGE)
def share(memory_id: MemoryId, body: ShareRequest, service: Service, user: User) -> AccessBody:
    """Give a user or a group rights to a memory.

    Its owner may give any; someone with the right to share may pass on rights that they have. Others see of the answer
    what they gave.
    """
    if not body.rights:
        raise BadInput("No right is named: send read, write or share, or DELETE to take rights away.")
    return _granted(service, user, GrantStep(memory_id, body.principal, tuple(body.rights)))


@router.delete("/access", response_model=AccessBody)
def revoke(
    memory_id: MemoryId,
    principal: Annotated[str, Query(description="A user, or `group:NAME`.", examples=["tom"])],
    service: Service,
    user: User,
    user_id: UserId = None,
) -> AccessBody:
    """Take all rights to a memory of one's own from a user or a group."""
    owned(service, user, memory_id)
    return _granted(service, user, GrantStep(memory_id, checked_principal(principal), ()))


def _granted(service: MemoryService, user: str, step: GrantStep) -> AccessBody:
    checked_principal(step.principal)
    (cube,) = service.pipeline([step], user, permit_for(service, user))
    if cube.owner in service.principals(user):
        return AccessBody.of(cube)
    return AccessBody.of(_only(cube, step.principal))


def _only(cube: MemCube, principal: str) -> MemCube:
    """The cube with one grant: who else has access is for its owner to know."""
    kept = tuple(grant for grant in cube.header.access if grant.principal == principal)
    return MemCube(msgspec.structs.replace(cube.header, access=kept), cube.payload)


def _seen(service: MemoryService, user: str, ancestor: Ancestor) -> Ancestor | None:
    """An ancestor as the user may see it: readers are not told who else writes."""
    try:
        cube = service.readable(user, ancestor.id)
    except NotFound:
        return None
    known = ancestor.author == user or may_write(cube, service.principals(user))
    return ancestor if known else msgspec.structs.replace(ancestor, author="")
