"""`/v1/memories`: what a person remembers, in mem0's shape.

The handlers are plain functions, so FastAPI runs them in its thread pool: vault and search block.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Forbidden, Unauthorized
from memos_vllm.governance.acl import may_write
from memos_vllm.server.injection import current_memory
from memos_vllm.server.middleware import api_key
from memos_vllm.server.schemas import (
    AddRequest,
    Change,
    Deleted,
    ErrorBody,
    Health,
    History,
    Memories,
    Memory,
    SearchRequest,
    UpdateRequest,
)
from memos_vllm.server.service import MemoryService

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is malformed, or does not say whose memories it means."},
    401: {"model": ErrorBody, "description": "No API key, or an unknown one."},
    403: {"model": ErrorBody, "description": "The caller may not do this."},
}
_MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "No such memory among those the caller may read."}
}

router = APIRouter(prefix="/v1", tags=["memories"], responses=_ERRORS)


def memory_service(request: Request) -> MemoryService:
    service: MemoryService = request.app.state.memos
    return service


def calling_user() -> str:
    """The user the request speaks for. Raises BadInput when it does not say."""
    memory = current_memory.get()
    if memory is None or memory.caller is None:
        raise BadInput("Say whose memories: send user_id, the header x-memos-user-id, or a key that belongs to a user.")
    return memory.caller.user


Service = Annotated[MemoryService, Depends(memory_service)]
User = Annotated[str, Depends(calling_user)]
UserId = Annotated[str | None, Query(description="Whose memories; needed unless the key or a header says it.")]


def writable(service: MemoryService, user: str, memory_id: str) -> MemCube:
    """The memory, if the user may change it. Raises NotFound and Forbidden."""
    cube = service.readable(user, memory_id)
    if not may_write(cube, user):
        raise Forbidden(f"You may read memory {memory_id!r} but not change it; ask its owner for the right to write.")
    return cube


def owned(service: MemoryService, user: str, memory_id: str) -> MemCube:
    """The user's own memory. Raises NotFound and Forbidden."""
    cube = service.readable(user, memory_id)
    if cube.owner != user:
        raise Forbidden(f"Memory {memory_id!r} is not yours: only its owner may do this.")
    return cube


def shown(service: MemoryService, cube: MemCube, user: str) -> Memory:
    """The memory with its form, which is for its owner to know."""
    state = service.activation([cube])[0] if cube.owner == user else None
    return Memory.of(cube, user, activation=state)


@router.get("/memories/health", response_model=Health, response_model_exclude_none=True)
def health(request: Request, service: Service) -> Health:
    """Whether the vault answers; where keys are required, a request with a key also learns what it holds."""
    stats = service.vault.stats()
    try:
        service.ring.user_of(api_key(request.headers))
    except Unauthorized:
        return Health(status="ok", splice=service.splicer is not None)
    return Health(status="ok", splice=service.splicer is not None, vault=stats)


@router.post("/memories", response_model=Memories, response_model_exclude_none=True)
def add_memories(body: AddRequest, service: Service, user: User) -> Memories:
    """Remember a text, or each user message, word for word. All of them are stored, or none."""
    texts = body.texts()
    if not texts:
        raise BadInput("There is nothing to remember: send text, or messages with at least one of role 'user'.")
    cubes = [
        MemCube.plaintext(
            text,
            owner=user,
            source=body.run_id or "",
            metadata=body.all_metadata(),
            access=body.access,
            tags=body.tags,
            expires=body.expires,
        )
        for text in texts
    ]
    stored = service.vault.add(cubes, actor=user)
    service.written(stored)
    return Memories(results=[Memory.of(cube, user, event="ADD") for cube in stored])


@router.get("/memories", response_model=Memories, response_model_exclude_none=True)
def list_memories(
    service: Service,
    user: User,
    user_id: UserId = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(description="Id of the last memory of the page before.")] = "",
) -> Memories:
    """The user's own memories, oldest first."""
    cubes = service.vault.list(user, limit=limit, after=after)
    states = service.activation(cubes)
    return Memories(
        results=[Memory.of(cube, user, activation=state) for cube, state in zip(cubes, states, strict=True)]
    )


@router.delete("/memories", response_model=Deleted)
def delete_memories(service: Service, user: User, user_id: UserId = None) -> Deleted:
    """Delete all of the user's own memories, with every version and K/V file."""
    count = service.delete_owner(user)
    return Deleted(message=f"Deleted {count} memories of {user}.", deleted=count)


@router.post("/memories/search", response_model=Memories, response_model_exclude_none=True)
@router.post("/search", response_model=Memories, response_model_exclude_none=True, include_in_schema=False)
def search_memories(body: SearchRequest, service: Service, user: User) -> Memories:
    """The memories that fit the query best, among all that the user may read."""
    hits = service.operator.search(user, body.query, top_k=body.count(), filters=body.metadata_filters() or None)
    return Memories(results=[Memory.found(hit, user) for hit in hits])


@router.get("/memories/{memory_id}", response_model=Memory, response_model_exclude_none=True, responses=_MISSING)
def get_memory(memory_id: str, service: Service, user: User, user_id: UserId = None) -> Memory:
    """One memory; its owner also sees in which form it enters prompts, and why."""
    return shown(service, service.readable(user, memory_id), user)


@router.put("/memories/{memory_id}", response_model=Memory, response_model_exclude_none=True, responses=_MISSING)
def update_memory(memory_id: str, body: UpdateRequest, service: Service, user: User) -> Memory:
    """Change a memory's text: a new version with the same id."""
    text = body.text if body.text is not None else body.content
    if text is None:
        raise BadInput("There is no new text: send it as text.")
    writable(service, user, memory_id)
    cube = service.update(
        memory_id,
        lambda: service.vault.update(memory_id, text, actor=user, operation=body.operation, metadata=body.metadata),
    )
    return Memory.of(cube, user, event="UPDATE")


@router.delete("/memories/{memory_id}", response_model=Deleted, responses=_MISSING)
def delete_memory(memory_id: str, service: Service, user: User, user_id: UserId = None) -> Deleted:
    """Delete a memory, with every version and K/V file."""
    owned(service, user, memory_id)
    service.delete(memory_id, user)
    return Deleted(message="Memory deleted.", deleted=1)


@router.post("/memories/{memory_id}/pin", response_model=Memory, response_model_exclude_none=True, responses=_MISSING)
def pin_memory(memory_id: str, service: Service, user: User, user_id: UserId = None) -> Memory:
    """Pin a memory: its K/V are made at once, and kept before all others."""
    owned(service, user, memory_id)
    return shown(service, service.pin(memory_id, True), user)


@router.delete("/memories/{memory_id}/pin", response_model=Memory, response_model_exclude_none=True, responses=_MISSING)
def unpin_memory(memory_id: str, service: Service, user: User, user_id: UserId = None) -> Memory:
    """Let a memory's K/V go when room is short, as those of any other."""
    owned(service, user, memory_id)
    return shown(service, service.pin(memory_id, False), user)


@router.get("/memories/{memory_id}/history", response_model=History, responses=_MISSING)
def memory_history(memory_id: str, service: Service, user: User, user_id: UserId = None) -> History:
    """What happened to a memory, oldest first."""
    service.readable(user, memory_id)
    return History(results=[Change.of(event) for event in service.vault.history(memory_id)])
