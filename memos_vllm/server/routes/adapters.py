"""`/v1/adapters`: the LoRA adapters of a user, their versions, and which of them answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi import Path as PathParameter
from starlette.background import BackgroundTask
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.responses import FileResponse

from memos_vllm.errors import BadInput, MemosError, TooLarge
from memos_vllm.parameter.registry import AdapterFiles
from memos_vllm.server.errors import error_response
from memos_vllm.server.routes.common import (
    COMMON,
    TOO_LARGE,
    MemoryRoute,
    Owner,
    Service,
    User,
    UserId,
    error,
    owner_of,
)
from memos_vllm.server.schemas_adapters import (
    ActivateRequest,
    AdapterBody,
    AdapterRemoved,
    Adapters,
    OwnerRequest,
)
from memos_vllm.server.service import MemoryService

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 1 << 20
"""Bytes of an adapter's configuration."""
FORM_BYTES = 1 << 20
"""What the fields of an upload may take beside its files."""
MISSING = error(
    404,
    "not_found_error",
    "No such adapter among those the caller may use.",
    "There is no adapter 'style' that you may use.",
)
UNUSABLE = error(
    409,
    "invalid_request_error",
    "The adapter is active in no version, or its files are missing, damaged or for another model.",
    "Adapter 'style' is active in no version; activate one.",
)


class UploadRoute(MemoryRoute):
    """A route that looks at the length of an upload before it takes it in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            try:
                _check_length(request.headers, request.app.state.memos.adapters.max_bytes)
            except MemosError as error:
                return error_response(error)
            return await handler(request)

        return limited


class NameConvertor(PathConvertor):
    """The rest of a path, line breaks too: what is no name is answered as one that nobody has."""

    regex = r"[\s\S]*"


register_url_convertor("adapter", NameConvertor())
router = APIRouter(prefix="/v1/adapters", tags=["adapters"], responses=COMMON, route_class=UploadRoute)
Name = Annotated[
    str, PathParameter(description="One's own adapter, or `OWNER/NAME` for somebody else's.", examples=["style"])
]
Version = Annotated[int | None, Query(ge=1, description="The newest active one where none is named.")]


@router.get("", response_model=Adapters, response_model_exclude_none=True)
def list_adapters(service: Service, user: User, user_id: UserId = None) -> Adapters:
    """The adapters that the caller may name as a request's model: their own, then those that are shared with them."""
    entries = service.adapters.list(service.caller(user))
    return Adapters(results=[AdapterBody.of(entry, user) for entry in entries])


@router.post("", response_model=AdapterBody, response_model_exclude_none=True, responses=UNUSABLE | TOO_LARGE)
def add_adapter(
    service: Service,
    user: User,
    name: Annotated[str, Form(description="a-z, 0-9, `.`, `_` and `-`; an adapter of that name gets a new version.")],
    files: Annotated[list[UploadFile], File(description=f"{CONFIG} and {WEIGHTS}, as PEFT saves them.")],
    activate: Annotated[bool, Form(description="Whether it answers from now on.")] = True,
    default: Annotated[bool | None, Form(description="Whether it answers in the base model's place.")] = None,
    tags: Annotated[list[str] | None, Form()] = None,
    user_id: UserId = None,
    owner: Owner = None,
) -> AdapterBody:
    """Store a LoRA adapter, or a new version of one, after a check of everything that the engine would read of it.

    Requests that are being answered stay with the version they began with.
    """
    config, weights = _both(files)
    taken = AdapterFiles(config.file.read(MAX_CONFIG + 1), weights.file)
    whose = owner_of(service, user, owner)
    service.adapters.add(whose, name, taken, author=user, tags=tuple(tags or ()), activate=activate)
    if activate and default is not None:
        service.adapters.activate(service.caller(user), f"{whose}/{name}", default=default)
    return _shown(service, user, f"{whose}/{name}")


@router.get("/{name:adapter}/files/{file}", response_class=FileResponse, responses=MISSING | UNUSABLE)
def export_file(
    name: Name,
    file: Annotated[str, PathParameter(description=f"{CONFIG} or {WEIGHTS}.", examples=[CONFIG])],
    service: Service,
    user: User,
    version: Version = None,
    user_id: UserId = None,
) -> FileResponse:
    """One of the two files of an adapter."""
    if file not in (CONFIG, WEIGHTS):
        raise BadInput(f"An adapter has the files {CONFIG} and {WEIGHTS}.")
    folder = Path(tempfile.mkdtemp(prefix="memos-export-"))
    try:
        service.adapters.export(service.caller(user), name, folder / "adapter", version)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return FileResponse(folder / "adapter" / file, filename=file, background=BackgroundTask(shutil.rmtree, folder))


@router.post(
    "/{name:adapter}/activate",
    response_model=AdapterBody,
    response_model_exclude_none=True,
    responses=MISSING | UNUSABLE,
)
def activate(name: Name, body: ActivateRequest, service: Service, user: User) -> AdapterBody:
    """Say which version answers from now on. Requests that are being answered stay with theirs."""
    service.adapters.activate(service.caller(user), name, body.version, default=body.default)
    return _shown(service, user, name)


@router.post(
    "/{name:adapter}/deactivate",
    response_model=AdapterBody,
    response_model_exclude_none=True,
    responses=MISSING | UNUSABLE,
)
def deactivate(name: Name, body: OwnerRequest, service: Service, user: User) -> AdapterBody:
    """Let no version answer any more under the adapter's name; each can still be named itself."""
    service.adapters.deactivate(service.caller(user), name)
    return _shown(service, user, name)


@router.post(
    "/{name:adapter}/rollback",
    response_model=AdapterBody,
    response_model_exclude_none=True,
    responses=MISSING | UNUSABLE,
)
def roll_back(name: Name, body: OwnerRequest, service: Service, user: User) -> AdapterBody:
    """Go back to the version that was active before."""
    service.adapters.rollback(service.caller(user), name)
    return _shown(service, user, name)


@router.get("/{name:adapter}", response_model=AdapterBody, response_model_exclude_none=True, responses=MISSING)
def get_adapter(name: Name, service: Service, user: User, user_id: UserId = None) -> AdapterBody:
    """An adapter with its versions."""
    return _shown(service, user, name)


@router.delete(
    "/{name:adapter}", response_model=AdapterRemoved, response_model_exclude_none=True, responses=MISSING | UNUSABLE
)
def remove_adapter(
    name: Name,
    service: Service,
    user: User,
    version: Annotated[int | None, Query(ge=1, description="All of them where none is named.")] = None,
    user_id: UserId = None,
) -> AdapterRemoved:
    """Remove an adapter, or one version of it, with its files. Requests that are being answered are answered to the
    end; the engine's copy and slot are freed after them.
    """
    service.adapters.remove(service.caller(user), name, version)
    return AdapterRemoved(name=name, version=version)


def _shown(service: MemoryService, user: str, name: str) -> AdapterBody:
    return AdapterBody.of(service.adapters.get(service.caller(user), name), user)


def _both(files: list[UploadFile]) -> tuple[UploadFile, UploadFile]:
    """The upload's configuration and weights. Raises BadInput for any other files."""
    named = {file.filename: file for file in files}
    if len(files) != len(named) or set(named) != {CONFIG, WEIGHTS}:
        told = ", ".join(repr(str(file.filename)[:64]) for file in files[:4])
        raise BadInput(f"An adapter is the two files {CONFIG} and {WEIGHTS}, as PEFT saves them; these are {told}.")
    return named[CONFIG], named[WEIGHTS]


def _check_length(headers: Headers, limit: int) -> None:
    """Raises BadInput for an upload that does not say how long it is, TooLarge for one over the limit."""
    if not headers.get("content-type", "").startswith("multipart/"):
        return
    length = headers.get("content-length", "")
    if not length.isdecimal():
        raise BadInput("Send the upload with a Content-Length.")
    if int(length) > limit + FORM_BYTES:
        raise TooLarge(f"The upload is {length} bytes; the limit of an adapter is {limit}.")
