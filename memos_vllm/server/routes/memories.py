"""`/v1/memories`: what a person remembers, in mem0's shape."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from memos_vllm.cube import Header, MemCube, Plaintext, completed, timestamp
from memos_vllm.errors import BadInput, Unauthorized
from memos_vllm.reader import Spoken
from memos_vllm.retrieval.base import matches
from memos_vllm.server.middleware import api_key
from memos_vllm.server.routes.common import (
    COMMON,
    CONFLICT,
    MISSING,
    TOO_LARGE,
    MemoryId,
    MemoryRoute,
    Owner,
    Scope,
    Scoped,
    Service,
    User,
    UserId,
    owned,
    owner_of,
    shown,
    writable,
)
from memos_vllm.server.routes.filters import query_of
from memos_vllm.server.routes.permits import if_owned, if_writable, permit_for
from memos_vllm.server.schemas import (
    AddRequest,
    Change,
    ChatMessage,
    Deleted,
    DeleteRequest,
    EditRequest,
    Health,
    History,
    Memories,
    Memory,
    SearchRequest,
    UpdateRequest,
    grants,
)
from memos_vllm.server.service import MemoryService
from memos_vllm.server.writing import MemoryForm, form_at
from memos_vllm.vault.pipeline import MAX_STEPS, DeleteStep

router = APIRouter(prefix="/v1", tags=["memories"], responses=COMMON, route_class=MemoryRoute)
PAGE = 1000
"""Memories that are read at a time where a scope leaves some out."""
SCOPING = frozenset(("user_id", "agent_id", "app_id", "run_id", "org_id", "project_id", "snapshots"))
"""Query parameters of a deletion; a mistyped one must not delete all. mem0's client sends `org_id` and `project_id`."""
Snapshots = Annotated[
    bool, Query(description="Delete the copies in the owner's snapshots too, which could bring memories back.")
]
NO_NONE: dict[str, Any] = {"response_model_exclude_none": True}


@router.get("/memories/health", response_model=Health, **NO_NONE)
def health(request: Request, service: Service) -> Health:
    """Whether the vault answers; a service key, an admin's or an auditor's that is cleared for everything also learns
    what it holds.
    """
    stats = service.vault.stats()
    totals = stats if _operates(service, api_key(request.headers)) else None
    return Health(status="ok", splice=service.splicer is not None, vault=totals)


def _operates(service: MemoryService, key: str | None) -> bool:
    """Whether a key is that of somebody who looks after the server: totals tell one user what others do."""
    try:
        bearer = service.ring.bearer(key)
    except Unauthorized:
        return False
    if bearer.clearance is not None:
        return False
    return service.ring.required and (not bearer.user or not {"admin", "auditor"}.isdisjoint(bearer.roles))


@router.post("/memories", response_model=Memories, responses=TOO_LARGE, **NO_NONE)
def add_memories(body: AddRequest, service: Service, user: User) -> Memories:
    """Remember a text, or each user message, word for word; with `infer`, what the server's reader finds in them.

    All of it is stored, or none. What the reader finds and knows already comes back with the event NONE, what it
    corrects with UPDATE: both take the request's tags, sensitivity and access on top of their own, and what is
    corrected takes its expiry. Namespace and priority are those of new memories.
    """
    kept = body.kept()
    if not kept:
        raise BadInput("There is nothing to remember: send text, or messages with at least one of role 'user'.")
    if body.infer:
        return inferred(body, service, user)
    stored = service.add([_cube(body, message, user) for message in kept], actor=user)
    return Memories(results=[Memory.of(cube, user, event="ADD") for cube in stored])


def inferred(body: AddRequest, service: MemoryService, user: str) -> Memories:
    """What the reader makes of the messages, against what is known."""
    form = MemoryForm(
        source=body.run_id or "",
        metadata=body.all_metadata(),
        access=tuple(grants(body.access)),
        tags=tuple(body.tags),
        expires=body.expiry(),
        namespace=body.namespace,
        priority=body.priority,
        sensitivity=tuple(body.sensitivity),
    )
    spoken = [Spoken(message.role, message.text(), message.name or "") for message in body.spoken()]
    written = service.writer.remember(user, spoken, form_at(form, body.time()))
    return Memories(results=[Memory.of(one.cube, user, event=one.event) for one in written])


def _cube(body: AddRequest, message: ChatMessage, user: str) -> MemCube:
    header = Header(
        owner=user,
        source=body.run_id or "",
        metadata=body.all_metadata(message.name),
        access=tuple(grants(body.access)),
        tags=tuple(body.tags),
        expires=body.expiry(),
        happened=body.time(),
        semantic_type=body.semantic_type,
        priority=body.priority,
        namespace=body.namespace,
        sensitivity=tuple(body.sensitivity),
    )
    return completed(MemCube(header, Plaintext(message.text())))


@router.get("/memories", response_model=Memories, **NO_NONE)
def list_memories(
    service: Service,
    user: User,
    scope: Scoped,
    user_id: UserId = None,
    owner: Owner = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(description="Id of the last memory of the page before.")] = "",
    as_of: Annotated[str, Query(description="ISO-8601: the memories as they were then.")] = "",
) -> Memories:
    """The user's own memories, oldest first."""
    whose = owner_of(service, user, owner)
    found = _in_scope(service, user, whose, scope, limit=limit, after=after, as_of=timestamp(as_of, "as_of"))
    if as_of:
        return Memories(results=[Memory.of(cube, user) for cube in found])
    cubes = service.counted(found)
    states = service.activation(cubes)
    return Memories(
        results=[Memory.of(cube, user, activation=state) for cube, state in zip(cubes, states, strict=True)]
    )


@router.delete("/memories", response_model=Deleted)
def delete_memories(
    request: Request, service: Service, user: User, scope: Scoped, snapshots: Snapshots = False, user_id: UserId = None
) -> Deleted:
    """Delete all of the user's own memories, or those of an agent, an app or a run, with every version and K/V file.

    Copies in snapshots stay, and can bring them back, where `snapshots` does not say otherwise.
    """
    if unknown := sorted(request.query_params.keys() - SCOPING):
        raise BadInput(f"What to delete is not said by {unknown[0][:64]!r}: name user_id, agent_id, app_id or run_id.")
    count = delete_scope(service, user, scope, snapshots=snapshots)
    return Deleted(message=f"Deleted {count} memories of {user}.", deleted=count)


def delete_scope(service: MemoryService, user: str, scope: Scope, *, snapshots: bool = False) -> int:
    """Delete the user's memories in a scope, MAX_STEPS of them in one transaction; returns how many.

    Those that the user's key is not cleared for stay.
    """
    if not scope.filters and service.caller(user).clearance is None:
        return service.delete_owner(user, snapshots=snapshots)
    steps = [DeleteStep(cube.id, snapshots) for cube in _in_scope(service, user, user, scope)]
    for first in range(0, len(steps), MAX_STEPS):
        service.pipeline(steps[first : first + MAX_STEPS], user, permit_for(service, user))
    return len(steps)


def _in_scope(
    service: MemoryService,
    user: str,
    owner: str,
    scope: Scope,
    *,
    limit: int | None = None,
    after: str = "",
    as_of: str = "",
) -> list[MemCube]:
    """An owner's memories in a scope, oldest first, `limit` of them behind `after`."""
    if not scope.filters:
        return service.listed(user, owner, limit=limit, after=after, as_of=as_of)
    found: list[MemCube] = []
    while limit is None or len(found) < limit:
        page = service.listed(user, owner, limit=PAGE, after=after, as_of=as_of)
        found += [cube for cube in page if matches(cube, scope.filters)]
        if len(page) < PAGE:
            break
        after = page[-1].id
    return found[:limit]


@router.post("/memories/search", response_model=Memories, **NO_NONE)
@router.post("/search", response_model=Memories, include_in_schema=False, **NO_NONE)
def search_memories(body: SearchRequest, service: Service, user: User) -> Memories:
    """The memories that fit the query best, among all that the user may read. Where none fits, the latest ones come
    back, with score 0; a `threshold` above 0 leaves them out.

    With `archived` it looks among the user's own archived memories instead; none comes back by being found.
    """
    wanted = query_of(body)
    if body.archived:
        recalled = service.recall(user, body.query)
        hits = [*islice((hit for hit in recalled if wanted.lets_through(hit.cube)), body.count())]
    else:
        hits = service.search(user, body.query, top_k=body.count(), **wanted.options())
    least = body.threshold
    return Memories(results=[Memory.found(hit, user) for hit in hits if least is None or hit.score >= least])


@router.post("/memories/delete", response_model=Deleted, responses=MISSING)
def delete_some(body: DeleteRequest, service: Service, user: User, snapshots: Snapshots = False) -> Deleted:
    """Delete several memories, all of them or none, with every version and K/V file.

    Copies in snapshots stay, and can bring them back, where `snapshots` does not say otherwise.
    """
    cubes = [owned(service, user, memory_id) for memory_id in dict.fromkeys(body.ids)]
    service.pipeline([DeleteStep(cube.id, snapshots) for cube in cubes], user, permit_for(service, user))
    return _deleted(service, cubes, f"Deleted {len(cubes)} memories of {user}.")


def _deleted(service: MemoryService, cubes: list[MemCube], message: str) -> Deleted:
    return Deleted(message=message, deleted=len(cubes), in_snapshots=service.vault.copies_of(cubes))


@router.get("/memories/{memory_id}", response_model=Memory, responses=MISSING, **NO_NONE)
def get_memory(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> Memory:
    """One memory; its owner also sees in which form it enters prompts, and why."""
    return shown(service, service.readable(user, memory_id), user)


@router.put("/memories/{memory_id}", response_model=Memory, responses=MISSING | CONFLICT | TOO_LARGE, **NO_NONE)
def update_memory(
    memory_id: MemoryId, body: UpdateRequest, service: Service, user: User, user_id: UserId = None
) -> Memory:
    """Change a memory's text: a new version with the same id.

    Its expiry, and metadata without a text, change without a new version: that is for its owner.
    """
    text, expires = body.new_text(), body.expiry()
    if text is None and body.metadata is None and expires is None:
        raise BadInput("There is nothing new: send a text, metadata or an expiry.")
    happened = timestamp(body.time() or "", "happened") or None
    expires = None if expires is None else timestamp(expires, "expires")
    alone = text is not None and expires is None
    (writable if alone else owned)(service, user, memory_id)
    allowed = (if_writable if alone else if_owned)(service, user)
    new: dict[str, Any] = {
        "metadata": body.metadata,
        "expires": expires,
        "expect": body.expect,
        "actor": user,
        "allowed": allowed,
    }
    if text is None:
        cube = service.vault.edit(memory_id, **new)
    else:
        new |= {"operation": body.operation, "happened": happened}
        cube = service.update(memory_id, lambda: service.vault.update(memory_id, text, **new))
    return shown(service, cube, user, event="UPDATE")


@router.patch("/memories/{memory_id}", response_model=Memory, responses=MISSING | CONFLICT | TOO_LARGE, **NO_NONE)
def edit_memory(memory_id: MemoryId, body: EditRequest, service: Service, user: User) -> Memory:
    """Change what is known about a memory (tags, priority, expiry, …), without a new version."""
    owned(service, user, memory_id)
    changes = body.model_dump(exclude_none=True, exclude={"user_id"})
    if not changes.keys() - {"expect"}:
        raise BadInput("There is nothing to change: send tags, priority, expires or another field.")
    cube = service.vault.edit(memory_id, actor=user, allowed=if_owned(service, user), **changes)
    return shown(service, cube, user, event="UPDATE")


@router.delete("/memories/{memory_id}", response_model=Deleted, responses=MISSING)
def delete_memory(
    memory_id: MemoryId, service: Service, user: User, snapshots: Snapshots = False, user_id: UserId = None
) -> Deleted:
    """Delete a memory, with every version and K/V file.

    Copies in snapshots stay, and can bring it back, where `snapshots` does not say otherwise.
    """
    cube = owned(service, user, memory_id)
    service.delete(memory_id, user, snapshots=snapshots, allowed=if_owned(service, user))
    return _deleted(service, [cube], "Memory deleted.")


@router.post("/memories/{memory_id}/pin", response_model=Memory, responses=MISSING, **NO_NONE)
def pin_memory(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> Memory:
    """Pin a memory: its K/V are made at once, and kept before all others."""
    owned(service, user, memory_id)
    return shown(service, service.pin(memory_id, True, user, allowed=if_owned(service, user)), user)


@router.delete("/memories/{memory_id}/pin", response_model=Memory, responses=MISSING, **NO_NONE)
def unpin_memory(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> Memory:
    """Let a memory's K/V go when room is short, as those of any other."""
    owned(service, user, memory_id)
    return shown(service, service.pin(memory_id, False, user, allowed=if_owned(service, user)), user)


@router.get("/memories/{memory_id}/history", response_model=History, responses=MISSING)
def memory_history(memory_id: MemoryId, service: Service, user: User, user_id: UserId = None) -> History:
    """What happened to a memory, oldest first. For those who may change it: an old text may be no reader's business."""
    writable(service, user, memory_id)
    return History(results=[Change.of(event) for event in service.history(user, memory_id)])
