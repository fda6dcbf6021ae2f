"""What concerns a person rather than one memory: the plan of a prompt, exports, the audit log, usage, and being
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from memos_vllm.cube import timestamp
from memos_vllm.errors import BadInput, Forbidden
from memos_vllm.governance.export import export
from memos_vllm.reader import call_of
from memos_vllm.server.routes.common import COMMON, TOO_LARGE, MemoryRoute, Responses, Service, User, UserId
from memos_vllm.server.routes.cursors import cursor_of, seq_of
from memos_vllm.server.schemas_account import (
    EXPORTED,
    ExportRequest,
    Forgotten,
    Log,
    LogEntryBody,
    PlanBody,
    PlanRequest,
    UsageBody,
    Verification,
)
from memos_vllm.server.service import MemoryService
from memos_vllm.vault import LogQuery

router = APIRouter(prefix="/v1", responses=COMMON, route_class=MemoryRoute)
MAX_DIGITS = 19
LINES = "application/x-ndjson"
CHUNK = 1 << 16
"""Bytes of an export that are sent together, at least."""
EXPORT: Responses = {
    200: {
        "description": "One cube as JSON a line.",
        "content": {LINES: {"example": msgspec.json.encode(EXPORTED).decode() + "\n"}},
        "headers": {"x-memos-export": {"description": "The export's number.", "schema": {"type": "string"}}},
    }
}
Text = Annotated[str, Query(max_length=256)]


@router.post("/memories/plan", response_model=PlanBody, response_model_exclude_none=True, tags=["plan"])
def plan(body: PlanRequest, service: Service, user: User) -> PlanBody:
    """Which memories a prompt with this question would be given, in which form, and why others not. Nothing is used,
    counted or generated.
    """
    call = call_of(body.query, user, datetime.now(UTC), service.principals(user)[1:])
    messages = [{"role": message.role, "content": message.text()} for message in body.messages]
    return PlanBody.of(service.plan(call, policy=body.policy, messages=messages), user)


@router.post("/memories/export", response_class=StreamingResponse, responses=EXPORT | TOO_LARGE, tags=["export"])
def export_memories(body: ExportRequest, service: Service, user: User) -> StreamingResponse:
    """The user's own memories as they leave: redacted and watermarked, one cube as JSON a line, oldest first.

    Left out are those that expired, that the key is not cleared for, and caches of pipelines; so is who else has to do
    with them. The export stands in the audit log, and `memos-vllm trace` leads a text with its marks back to it.
    """
    number, cubes = export(
        service.vault,
        user,
        recipient=body.recipient,
        actor=user,
        clearance=_narrowed(service.caller(user).clearance, body.clearance),
        redacted=body.redact,
        marked=body.watermark,
    )
    return StreamingResponse(_lines(cubes), media_type=LINES, headers={"x-memos-export": number})


@router.get("/audit", response_model=Log, response_model_exclude_none=True, tags=["audit"])
def read_log(
    service: Service,
    user: User,
    user_id: UserId = None,
    actor: Annotated[Text, Query(description="Who did it.")] = "",
    owner: Annotated[
        Text,
        Query(
            description="Whose memory or snapshot it was done to; a caller's own unless they may read the whole log."
        ),
    ] = "",
    target: Annotated[Text, Query(description="Id of a memory, or name of a snapshot.")] = "",
    action: Annotated[Text, Query(description="add, update, delete, …")] = "",
    since: Annotated[Text, Query(description="ISO-8601: then or later.")] = "",
    until: Annotated[Text, Query(description="ISO-8601: before.")] = "",
    after: Annotated[str, Query(max_length=32, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    newest_first: bool = False,
) -> Log:
    """Who did what to the caller's memories, oldest first; a key with the role admin or auditor reads the whole log,
    with the number and hash of each entry. A key that is not cleared for everything reads of what is there and what it
    is cleared for.
    """
    whole = service.caller(user).may("audit")
    place = _place(service, user, after, whole)
    entries = service.log(
        user,
        LogQuery(
            actor=actor,
            owner=_whose(service, user, owner, whole),
            target=target,
            action=action,
            since=timestamp(since, "since"),
            until=timestamp(until, "until"),
            after=0 if newest_first else place,
            before=place if newest_first else 0,
            limit=limit,
            newest_first=newest_first,
        ),
    )
    last = entries[-1].seq if len(entries) == limit else None
    following = None if last is None else str(last) if whole else cursor_of(last, service.secret, user)
    return Log(results=[LogEntryBody.of(entry, whole) for entry in entries], next=following)


@router.get("/audit/verify", response_model=Verification, tags=["audit"])
def verify_log(
    service: Service,
    user: User,
    user_id: UserId = None,
    anchor: Annotated[str, Query(max_length=128, description="An earlier `head`, which the log must still hold.")] = "",
) -> Verification:
    """Whether the audit log is whole: no entry changed, missing, moved or cut off. Reads all of it."""
    if not service.caller(user).may("audit"):
        raise Forbidden("Only a key with the role admin or auditor may verify the audit log.")
    head, problems = service.vault.log_head(), service.vault.verify_log(anchor)
    return Verification(ok=not problems, problems=problems, head=head)


@router.get("/me/usage", response_model=UsageBody, tags=["me"])
def usage(service: Service, user: User, user_id: UserId = None) -> UsageBody:
    """What the user's memories take up, and how much they may."""
    used, limits = service.usage(user), service.directory.limits_of(user)
    return UsageBody(
        user_id=user,
        cubes=used.cubes,
        bytes=used.bytes,
        max_cubes=limits.cubes,
        max_bytes=limits.bytes,
        requests_per_second=limits.rps,
    )


@router.delete("/me", response_model=Forgotten, tags=["me"])
def forget_me(service: Service, user: User, user_id: UserId = None) -> Forgotten:
    """Delete everything about the user: memories with all versions, K/V, snapshots, index rows, keys, memberships,
    rights that others gave them, and their name in the audit log. The answer proves it: no row tells of them any more.
    A key that is not cleared for all memories may not do this.
    """
    service.require_clearance(user)
    return Forgotten.of(user, *service.forget_user(user))


def _narrowed(key: frozenset[str] | None, wanted: list[str] | None) -> frozenset[str] | None:
    """What both a key and its request are cleared for; None for all."""
    if key is None or wanted is None:
        return key if wanted is None else frozenset(wanted)
    return key & frozenset(wanted)


def _lines(cubes: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """The cubes as lines of JSON, many in one piece: each piece is one turn of a thread."""
    piece = bytearray()
    for cube in cubes:
        piece += msgspec.json.encode(cube) + b"\n"
        if len(piece) >= CHUNK:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _whose(service: MemoryService, user: str, owner: str, whole: bool) -> str:
    """The owner to ask the log for; "" for all. Raises Forbidden."""
    if not whole and owner and owner not in service.principals(user):
        raise Forbidden("Only a key with the role admin or auditor may read the log about others.")
    return owner if whole else owner or user


def _place(service: MemoryService, user: str, after: str, whole: bool) -> int:
    """The entry that a page comes after; 0 for the first page. Raises BadInput."""
    if not after:
        return 0
    if not whole:
        return seq_of(after, service.secret, user)
    if not (after.isascii() and after.isdigit() and len(after) < MAX_DIGITS):
        raise BadInput("`after` is the number of an entry.")
    return int(after)
