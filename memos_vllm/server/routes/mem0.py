"""The paths of mem0's hosted API, which end in a slash and carry its version. A mem0 client that is given this server's
address works unchanged, with a key that belongs to a user (`mem0ai` 0.1 to 2.2 read).

Out of OpenAPI: these are other names of what stands there. The identity check finds the user in their filters too.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from memos_vllm.cube import MemCube, Plaintext
from memos_vllm.errors import BadInput, Forbidden, NotFound
from memos_vllm.server.routes import memories
from memos_vllm.server.routes.common import MemoryRoute, Scope, Scoped, Service, User, UserId, owned, writable
from memos_vllm.server.routes.filters import Wanted, query_of
from memos_vllm.server.routes.memories import PAGE
from memos_vllm.server.routes.permits import permit_for
from memos_vllm.server.schemas import (
    AddRequest,
    Change,
    Deleted,
    Memories,
    Memory,
    Metadata,
    SearchRequest,
    UpdateRequest,
)
from memos_vllm.vault.pipeline import DeleteStep, UpdateStep


def writer(service: Service, user: User) -> None:
    """Raises Forbidden for a key that may only read: the middleware does not know the paths here."""
    if not service.caller(user).may("write"):
        raise Forbidden("This API key may only read memories; use one of a member or an admin.")


router = APIRouter(include_in_schema=False, route_class=MemoryRoute)
WRITES = [Depends(writer)]
NO_NONE: dict[str, Any] = {"response_model_exclude_none": True}


class ListRequest(BaseModel):
    """mem0's way to list memories."""

    user_id: str | None = None
    filters: dict[str, Any] | None = None
    page: int | None = Field(None, ge=1, le=10**6)
    page_size: int | None = Field(None, ge=1, le=1000)


class Page(BaseModel):
    """One page of memories, newest first as at mem0.

    count: of all memories that are meant; where nothing filters, expired ones and adapters on other pages count too.
    """

    count: int
    next: str | None
    previous: str | None
    results: list[Memory]


class BatchItem(BaseModel):
    """One memory of a batch."""

    memory_id: str
    text: str | None = None
    metadata: Metadata | None = None


class Batch(BaseModel):
    """Memories to change or delete together."""

    memories: list[BatchItem] = Field(min_length=1, max_length=1000)
    user_id: str | None = None


@router.get("/v1/ping/")
def ping(service: Service) -> dict[str, Any]:
    """What mem0's client asks first: whether the key is good, which the middleware has checked, and for two ids."""
    return {"status": "ok", "org_id": "memos-vllm", "project_id": "memos-vllm", "user_email": None}


@router.post("/v1/memories/", response_model=Memories, dependencies=WRITES, **NO_NONE)
@router.post("/v3/memories/add/", response_model=Memories, dependencies=WRITES, **NO_NONE)
def add(body: AddRequest, service: Service, user: User) -> Memories:
    return memories.add_memories(body, service, user)


@router.get("/v1/memories/", response_model=Page, **NO_NONE)
def get_all(
    service: Service,
    user: User,
    user_id: UserId = None,
    page: Annotated[int, Query(ge=1, le=10**6)] = 1,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    *,
    scope: Scoped,
) -> Page:
    return _page(service, user, ListRequest(filters=scope.filters, page=page, page_size=page_size), "/v1/memories/")


@router.post("/v2/memories/", response_model=Page)
@router.post("/v3/memories/", response_model=Page)
def list_filtered(
    body: ListRequest,
    service: Service,
    user: User,
    page: Annotated[int | None, Query(ge=1, le=10**6)] = None,
    page_size: Annotated[int | None, Query(ge=1, le=1000)] = None,
) -> Page:
    wanted = body.model_copy(update={"page": page or body.page, "page_size": page_size or body.page_size})
    return _page(service, user, wanted, "/v3/memories/")


@router.post("/v1/memories/search/", response_model=Memories, **NO_NONE)
@router.post("/v2/memories/search/", response_model=Memories, **NO_NONE)
@router.post("/v3/memories/search/", response_model=Memories, **NO_NONE)
def search(body: SearchRequest, service: Service, user: User) -> Memories:
    return memories.search_memories(body, service, user)


@router.get("/v1/memories/{memory_id}/", response_model=Memory, **NO_NONE)
def get(memory_id: str, service: Service, user: User) -> Memory:
    return memories.get_memory(memory_id, service, user)


@router.put("/v1/memories/{memory_id}/", response_model=Memory, **NO_NONE)
def update(memory_id: str, body: UpdateRequest, service: Service, user: User) -> Memory:
    return memories.update_memory(memory_id, body, service, user)


@router.delete("/v1/memories/{memory_id}/", response_model=Deleted)
def delete(memory_id: str, service: Service, user: User) -> Deleted:
    return memories.delete_memory(memory_id, service, user)


@router.delete("/v1/memories/", response_model=Deleted)
def delete_all(request: Request, service: Service, user: User, scope: Scoped, user_id: UserId = None) -> Deleted:
    return memories.delete_memories(request, service, user, scope)


@router.get("/v1/memories/{memory_id}/history/", response_model=list[Change])
def history(memory_id: str, service: Service, user: User) -> list[Change]:
    return memories.memory_history(memory_id, service, user).results


@router.get("/v1/entities/")
def entities(service: Service, user: User) -> dict[str, Any]:
    """Whose memories the caller has: their own."""
    count = service.usage(user).cubes
    results = [{"id": user, "name": user, "type": "user", "total_memories": count}] if count else []
    return {"count": len(results), "next": None, "previous": None, "results": results}


@router.delete("/v2/entities/{kind}/{name}/", dependencies=WRITES)
def delete_entity(kind: str, name: str, service: Service, user: User) -> Deleted:
    """Delete all of the caller's memories, or those of an agent, an app or a run."""
    scopes = {"agent": Scope(agent_id=name), "app": Scope(app_id=name), "run": Scope(run_id=name)}
    scope = Scope() if (kind, name) == ("user", user) else scopes.get(kind)
    if scope is None:
        raise NotFound(f"There is no {kind[:32]} {name[:64]!r} whose memories you own.")
    count = memories.delete_scope(service, user, scope)
    return Deleted(message=f"Deleted {count} memories of {user}.", deleted=count)


@router.put("/v1/batch/", dependencies=WRITES)
def batch_update(body: Batch, service: Service, user: User) -> dict[str, str]:
    """Give several memories new texts, all or none."""
    items = [(writable(service, user, item.memory_id), item) for item in body.memories]
    if any(item.text is None and item.metadata is None for _, item in items):
        raise BadInput("There is nothing new: send a text or metadata with each memory.")
    steps = [_update(cube, item) for cube, item in items]
    service.pipeline(steps, user, permit_for(service, user))
    return {"message": f"Successfully updated {len(items)} memories"}


@router.delete("/v1/batch/", dependencies=WRITES)
def batch_delete(body: Batch, service: Service, user: User) -> dict[str, str]:
    """Delete several memories, all or none."""
    ids = [owned(service, user, item.memory_id).id for item in body.memories]
    service.pipeline([DeleteStep(memory_id) for memory_id in dict.fromkeys(ids)], user, permit_for(service, user))
    return {"message": f"Successfully deleted {len(ids)} memories"}


def _update(cube: MemCube, item: BatchItem) -> UpdateStep:
    """Metadata alone is a version with the text that was there: refused where that has changed meanwhile."""
    if item.text is None:
        return UpdateStep(cube.id, cube.text, metadata=item.metadata or {}, expect=cube.version)
    return UpdateStep(cube.id, item.text, metadata=item.metadata or {})


def _page(service: Service, user: str, wanted: ListRequest, path: str) -> Page:
    """One page of what the filters let through; mem0 counts pages from 1, and all memories."""
    page, size = wanted.page or 1, wanted.page_size or 100
    first = (page - 1) * size
    asked = query_of(SearchRequest.model_validate({"query": "", "filters": wanted.filters}))
    if asked == Wanted() and service.caller(user).clearance is None:
        cubes = service.vault.latest(user, skip=first, limit=size)
        found = [cube for cube in cubes if _is_listed(cube)]
        total = service.vault.usage(user).cubes
        more, count = first + size < total, total - (len(cubes) - len(found))
    else:
        found, count = _filtered(service, user, asked, first, size)
        more = first + size < count
    return Page(
        count=count,
        next=f"{path}?page={page + 1}&page_size={size}" if more else None,
        previous=f"{path}?page={page - 1}&page_size={size}" if page > 1 else None,
        results=[Memory.of(cube, user) for cube in found],
    )


def _is_listed(cube: MemCube) -> bool:
    """Whether it is a memory to be told of: no adapter, and not expired."""
    return isinstance(cube.payload, Plaintext) and not cube.expired()


def _filtered(service: Service, user: str, asked: Wanted, first: int, size: int) -> tuple[list[MemCube], int]:
    """The memories of one page that filters and the key's clearance let through, and how many there are in all."""
    found, count, before = [], 0, ""
    while cubes := service.vault.latest(user, limit=PAGE, before=before):
        for cube in service.cleared(user, cubes):
            if not _is_listed(cube) or not asked.lets_through(cube):
                continue
            if first <= count < first + size:
                found.append(cube)
            count += 1
        before = cubes[-1].id
    return found, count
