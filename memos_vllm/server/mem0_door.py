"""The door for mem0's own clients: what their requests say in other places is put where ours say it.

Stands before the identity check. mem0 names the user inside `filters` (`{"AND": [{"user_id": "maya"}]}`); the check
reads `user_id` at the top of the body.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memos_vllm.errors import NotFound
from memos_vllm.server.errors import error_response
from memos_vllm.server.routes.filters import user_in

_MEM0 = re.compile(r"/v[123]/memories/(add/|search/)?")
_UNGUARDED = "/v3/"
"""vLLM's `--api-key` looks at `/v1`, `/v2`, `/inference` and `/cohere` only (0.32, `GUARDED_PREFIX`)."""
MAX_BODY = 16 << 20
"""Bytes; a longer body is passed on as it is."""


class Mem0Door:
    """Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if scope["type"] == "http" and path.startswith(_UNGUARDED) and _has_api_key(scope):
            refusal = NotFound("With --api-key use the paths under /v1; mem0's /v3 needs --memory-keys.")
            await error_response(refusal)(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and _MEM0.fullmatch(path):
            await self._app(*await _lifted(scope, receive), send)
        else:
            await self._app(scope, receive, send)


def _path(scope: Scope) -> str:
    return str(scope.get("path", "").removeprefix(scope.get("root_path", "")))


def _has_api_key(scope: Scope) -> bool:
    """Whether vLLM guards its own routes with a key."""
    args = getattr(scope["app"].state, "args", None)
    return bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))


async def _lifted(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """The request with the user of its filters at the top of its body, where nothing stands there."""
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return scope, _again(b"".join(parts), False, receive, message)
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
    body = b"".join(parts)
    changed = None if more else _with_user(body)
    if changed is None:
        return scope, _again(body, more, receive)
    headers = MutableHeaders(raw=[*Headers(scope=scope).raw])
    headers["content-length"] = str(len(changed))
    return {**scope, "headers": headers.raw}, _again(changed, False, receive)


def _with_user(body: bytes) -> bytes | None:
    """The body with `user_id` lifted; None where there is nothing to lift."""
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("user_id"):
        return None
    user = user_in(fields.get("filters"))
    return None if user is None else json.dumps({**fields, "user_id": user}).encode()


def _again(body: bytes, more: bool, receive: Receive, then: Message | None = None) -> Receive:
    """A `receive` that yields what was read, then a message that came instead of the rest, then what comes."""
    first: Message = {"type": "http.request", "body": body, "more_body": more or then is not None}
    pending = [first] if then is None else [first, then]

    async def again() -> Message:
        return pending.pop(0) if pending else await receive()

    return again
