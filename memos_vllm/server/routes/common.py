"""What the memory routes share: who calls, the service, the checks of access, and the error answers in OpenAPI."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Forbidden
from memos_vllm.server.errors import error_response
from memos_vllm.server.injection import current_memory
from memos_vllm.server.routes.permits import if_owned, if_writable
from memos_vllm.server.schemas import EXAMPLE_ID, ErrorBody, Memory, Written
from memos_vllm.server.service import MemoryService

Responses = dict[int | str, dict[str, Any]]
MAX_SHOWN = 5
"""Faults of one body that an answer names."""


class MemoryRoute(APIRoute):
    """A route whose refusals of malformed requests are like all others: one line that names the field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except RequestValidationError as error:
                faults = [(".".join(map(str, fault["loc"][1:])), fault["msg"]) for fault in error.errors()[:MAX_SHOWN]]
                told = "; ".join(f"{where}: {what}" if where else what for where, what in faults)
                return error_response(BadInput(f"The request is malformed: {told}."), faults[0][0] or None)
            except HTTPException:
                return error_response(BadInput("The request's body is no JSON text in UTF-8."))

        return answered


def error(status: int, kind: str, description: str, message: str) -> Responses:
    """The OpenAPI entry of one error answer, with an example of its body."""
    example = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    content = {"application/json": {"example": example}}
    return {status: {"model": ErrorBody, "description": description, "content": content}}


COMMON: Responses = {
    **error(
        400,
        "invalid_request_error",
        "The request is malformed, or does not say whose memories it means.",
        "Say whose memories: send user_id, the header x-memos-user-id, or a key that belongs to a user.",
    ),
    **error(401, "authentication_error", "No API key, or one that is not known.", "This API key is not known."),
    **error(
        403,
        "permission_error",
        "The caller may not do this.",
        "This API key is bound to one user and may not speak for 'tom'.",
    ),
    **error(
        429,
        "rate_limit_error",
        "The user's requests come too fast; `Retry-After` says in how many seconds to try again.",
        "Too many requests of this user; try again in 1 second.",
    ),
    **error(
        503,
        "server_error",
        "The vault cannot be read or written now; nothing was stored.",
        "The vault is closed; start the server again.",
    ),
}
COMMON["4XX"] = {"model": ErrorBody, "description": "Any other refusal."}
MISSING = error(
    404,
    "not_found_error",
    "No such memory among those the caller may read.",
    "There is no memory '0198c0de7a1b7c3d9e5f6a7b8c9d0e1f' that you may read.",
)
CONFLICT = error(
    409,
    "invalid_request_error",
    "The request contradicts what is stored.",
    "Memory 0198c0de7a1b7c3d9e5f6a7b8c9d0e1f is frozen: its content cannot change.",
)
TOO_LARGE = {
    **error(
        413,
        "invalid_request_error",
        "A text, a header or a quota is over its limit.",
        "The text is 1048577 bytes, the limit is 1048576; store it in parts.",
    ),
    **error(
        507,
        "server_error",
        "The vault is full; nothing was stored.",
        "The vault reached its limit; delete memories or raise --memory-max-gib.",
    ),
}


# These two wait for nothing: FastAPI would hand each that is no coroutine to a thread, for every request.
async def memory_service(request: Request) -> MemoryService:
    service: MemoryService = request.app.state.memos
    return service


async def calling_user() -> str:
    """The user the request speaks for. Raises BadInput when it does not say."""
    memory = current_memory.get()
    if memory is None or memory.caller is None:
        raise BadInput("Say whose memories: send user_id, the header x-memos-user-id, or a key that belongs to a user.")
    return memory.caller.user


Service = Annotated[MemoryService, Depends(memory_service)]
User = Annotated[str, Depends(calling_user)]
Owner = Annotated[
    str | None, Query(description="A group of the caller's (`group:NAME`) whose memories are meant, not their own.")
]
UserId = Annotated[
    str | None, Query(description="Whose memories; needed unless the key or a header says it.", examples=["maya"])
]
MemoryId = Annotated[str, Path(description="32 hex digits.", examples=[EXAMPLE_ID])]


@dataclass(frozen=True)
class Scope:
    """Which of a user's memories are meant: those of an agent, an app, a run; all of them where nothing is named."""

    agent_id: Annotated[str | None, Query(description="Only memories that were added with it.")] = None
    app_id: Annotated[str | None, Query(description="Only memories that were added with it.")] = None
    run_id: Annotated[str | None, Query(description="Only memories that were added with it.")] = None

    @property
    def filters(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value is not None}


Scoped = Annotated[Scope, Depends()]


def writable(service: MemoryService, user: str, memory_id: str) -> MemCube:
    """The memory, if the user may change it. Raises NotFound and Forbidden."""
    cube = service.readable(user, memory_id)
    if_writable(service, user)(cube)
    return cube


def owned(service: MemoryService, user: str, memory_id: str) -> MemCube:
    """A memory of the user's own, or of a group they are in. Raises NotFound and Forbidden."""
    cube = service.readable(user, memory_id)
    if_owned(service, user)(cube)
    return cube


def owner_of(service: MemoryService, user: str, owner: str | None) -> str:
    """Whose memories a request means: the user's own, or those of a group they are in. Raises Forbidden."""
    if owner is not None and owner not in service.principals(user):
        raise Forbidden(f"You are neither {owner[:64]!r} nor in a group of that name.")
    return owner or user


def shown(service: MemoryService, cube: MemCube, user: str, *, event: Written | None = None) -> Memory:
    """The memory with its uses and its form, which are for its owner to know."""
    if cube.owner != user:
        return Memory.of(cube, user, event=event)
    (counted,) = service.counted([cube])
    return Memory.of(counted, user, event=event, activation=service.activation([cube])[0])
