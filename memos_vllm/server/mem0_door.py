"""The door for mem0's own clients: their paths, and where their requests say who is asking."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from memos_vllm.errors import NotFound
from memos_vllm.server.errors import error_response

FILTERED = re.compile(r"/v[123]/memories/(add/|search/)?|/v1/memories/search|/v1/search")
"""Paths whose bodies may name the user inside `filters`: `{"AND": [{"user_id": "maya"}]}`."""
MAX_DEPTH = 8
"""Levels of filters that are read."""
_UNGUARDED = "/v3/"
"""vLLM's `--api-key` looks at `/v1`, `/v2`, `/inference` and `/cohere` only (0.32, `GUARDED_PREFIX`)."""


class Mem0Door:
    """Pure ASGI: keeps `/v3` shut where only vLLM's own key guards the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _path(scope).startswith(_UNGUARDED) and _has_api_key(scope):
            refusal = NotFound("With --api-key use the paths under /v1; mem0's /v3 needs --memory-keys.")
            await error_response(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def user_in(filters: Any, depth: int = 0) -> str | None:
    """The user that filters name, on any level of `AND`; None where they name none, or any."""
    if not isinstance(filters, Mapping) or depth > MAX_DEPTH:
        return None
    if isinstance(user := filters.get("user_id"), str) and user != "*":
        return user
    inner = filters.get("AND", filters.get("and"))
    found = (user_in(item, depth + 1) for item in inner) if isinstance(inner, list) else iter(())
    return next((user for user in found if user is not None), None)


def _path(scope: Scope) -> str:
    return str(scope.get("path", "").removeprefix(scope.get("root_path", "")))


def _has_api_key(scope: Scope) -> bool:
    """Whether vLLM guards its own routes with a key."""
    args = getattr(scope["app"].state, "args", None)
    return bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))
