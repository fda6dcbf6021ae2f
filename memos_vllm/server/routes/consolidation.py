"""`/v1/me/consolidation`: which of a user's memories an adapter should know, and whether the server may make one."""

from __future__ import annotations

import time

from fastapi import APIRouter

from memos_vllm.errors import Conflict
from memos_vllm.governance.consent import allow
from memos_vllm.server.routes.common import COMMON, MemoryRoute, Service, User, UserId, error
from memos_vllm.server.schemas_consolidation import ConsentRequest, ProposalBody
from memos_vllm.server.service import MemoryService

OFF = error(
    409,
    "invalid_request_error",
    "The server proposes nothing, or is busy with other proposals.",
    "Consolidation is off: start the server with --memory-consolidate propose or auto.",
)

router = APIRouter(prefix="/v1/me", tags=["me"], responses=COMMON | OFF, route_class=MemoryRoute)


@router.get("/consolidation", response_model=ProposalBody)
def get_proposal(service: Service, user: User, user_id: UserId = None) -> ProposalBody:
    """Which of the user's memories are stable and often used, so that an adapter should know them in place of prompts.

    Nothing is trained by this; `POST /v1/adapters/train` with these `memory_ids` does.
    """
    return _proposal(service, user)


@router.put("/consolidation", response_model=ProposalBody)
def set_consent(body: ConsentRequest, service: Service, user: User) -> ProposalBody:
    """Allow the server (`--memory-consolidate auto`) to make such an adapter and to use it, or allow it no more: then a
    training under way stops. The adapter stays; it is taken out of use and removed as every other.
    """
    _check_on(service)
    allow(service.vault, user, body.allowed, actor=user)
    if not body.allowed:
        service.consolidator.withdrawn(user)
    return _proposal(service, user)


def _proposal(service: MemoryService, user: str) -> ProposalBody:
    _check_on(service)
    return ProposalBody.of(service.consolidator.offer(user, time.time()), user, service.consolidator.mode)


def _check_on(service: MemoryService) -> None:
    if service.consolidator.mode == "off":
        raise Conflict("Consolidation is off: start the server with --memory-consolidate propose or auto.")
