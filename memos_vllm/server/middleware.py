"""The door: who is calling, may they, and what the answer's headers say about memory.

Added inside `attach_router`, so it runs behind vLLM's own `--api-key` check and in front of every route. vLLM's check
leaves `/invocations` and others open; this one knows no unguarded route beyond `OPEN_PATHS`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast, get_args

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memos_vllm.activation.repair import parse_policy
from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Conflict, Forbidden, MemosError, VaultUnavailable
from memos_vllm.governance.identity import NOBODY, Bearer, Caller, caller_of
from memos_vllm.scheduler.policies import policy_named
from memos_vllm.server.errors import error_response
from memos_vllm.server.fair import TenantGate
from memos_vllm.server.injection import Mode, RequestMemory, current_memory
from memos_vllm.server.mem0_door import FILTERED, user_in
from memos_vllm.server.service import MemoryService

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset(
    ("/health", "/ping", "/version", "/metrics", "/docs", "/openapi.json", "/v1/memories/health"),
)
MEMORY_PATHS = frozenset(("/v1/chat/completions", "/v1/messages", "/v1/responses", "/invocations"))
"""Routes whose prompts carry memories."""

GENERATING_PATHS = MEMORY_PATHS | {"/v1/completions", "/v1/chat/completions/batch", "/inference/v1/generate"}
"""Routes that a model answers."""

OUR_PREFIXES = ("/v1/memories", "/v1/search", "/v1/snapshots", "/v1/pipelines", "/v1/audit", "/v1/me", "/v1/adapters")
MEM0_PREFIXES = ("/v2/memories", "/v3/memories", "/v1/entities", "/v2/entities", "/v1/batch", "/v1/ping")
READING = frozenset(("/v1/memories/search", "/v1/search", "/v1/memories/plan"))
"""Our paths whose POST changes nothing."""

MODES: tuple[str, ...] = get_args(Mode)

WEIGHT_PATHS = frozenset(
    (
        *("/init_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update", "/update_weights"),
        *("/finish_weight_update", "/collective_rpc"),
    )
)
"""Routes of vLLM that put other weights into the engine. K/V of memories are of the weights it was started with.

`/sleep`, `/wake_up` and `/reset_prefix_cache` leave the weights alone, and K/V of memories lie outside of what they
clear.
"""

LOADING_PATHS = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"))
"""Routes of vLLM that load any folder of this machine into the engine, for everybody."""

MAX_HELD = 16
"""Messages of an answer that may wait for the engine's report."""

MAX_CONVERSATION = 128
"""Characters of a conversation's name."""

MAX_NAMED = 64
"""Cubes that a request may name itself."""

LARGE_BODY = 256 * 1024
"""Bytes from which on a body is parsed in a thread."""


class MemoryMiddleware:
    """Pure ASGI: identity, the guard of `kv_transfer_params`, and the `x-memos-*` headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._looking = asyncio.Lock()
        self._looker = ThreadPoolExecutor(1, "memos-rules")
        self._gate = TenantGate()

    async def _follow_rules(self, service: MemoryService) -> None:
        """Have the registry looked at where it is time, and read where it has changed: once for all who wait, and never
        behind slow memory routes.

        Raises VaultUnavailable where keys are needed: whether one was revoked is not known then.
        """
        if not service.directory.is_stale() or service.directory.confirm():
            return
        async with self._looking:
            if not service.directory.is_stale():
                return
            try:
                await asyncio.get_running_loop().run_in_executor(self._looker, service.directory.refresh)
            except VaultUnavailable as error:
                if service.ring.required:
                    raise
                logger.warning("groups and quotas are those of before: %s", error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = getattr(scope["app"].state, "memos", None) if scope["type"] in ("http", "websocket") else None
        if service is None or path_of(scope) in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers, bearer = Headers(scope=scope), NOBODY
        try:
            await self._follow_rules(service)
            bearer = service.ring.bearer(api_key(headers))  # strangers are refused before their body is read
            _refuse_new_weights(service, path_of(scope))
            body, receive = await _buffered(scope, headers, receive)
            memory = await open_memory(service, scope, headers, body, bearer)
            seat = None if service.door is None else await service.door.open(memory)
        except MemosError as error:
            if isinstance(error, Forbidden):
                service.trail.note(bearer.user, "refuse")
            await _refuse(error, scope, receive, send)
            return
        token = current_memory.set(memory)
        try:
            if memory.caller is not None and takes_thread(path_of(scope)):
                async with self._gate.inside(memory.caller.user):
                    await self._app(scope, receive, send)
            else:
                await self._app(scope, receive, HeldSend(memory, send) if memory.tells else send)
        finally:
            current_memory.reset(token)
            if service.door is not None and seat is not None:
                service.door.close(seat)


class HeldSend:
    """Holds the response's start back until all is there that the headers tell, the engine's report among it.

    A streaming answer's first event may come before the engine's first output (`/v1/responses` does that), and headers
    cannot follow events; so such early events wait too. Where no memory is in the prompt nothing waits: what client and
    server do with headers takes time that is not to be added to that of the first token.
    """

    def __init__(self, memory: RequestMemory, send: Send) -> None:
        self._memory = memory
        self._send = send
        self._held: list[Message] = []
        self._open = False

    async def __call__(self, message: Message) -> None:
        if self._open:
            await self._send(message)
            return
        self._held.append(message)
        starts = message["type"] == "http.response.start" and not self._memory.settled
        early = self._memory.awaits_engine and message.get("more_body", False) and len(self._held) < MAX_HELD
        if starts or early:
            return
        self._open = True
        for held in self._held:
            if held["type"] == "http.response.start":
                MutableHeaders(raw=held["headers"]).update(self._memory.headers())
            await self._send(held)
        self._held.clear()


def path_of(scope: Scope) -> str:
    return str(scope["path"].removeprefix(scope.get("root_path", "")))


async def open_memory(
    service: MemoryService, scope: Scope, headers: Headers, body: bytes, bearer: Bearer
) -> RequestMemory:
    """The memory side of a request. Raises Forbidden, RateLimited, NotFound and BadInput."""
    path, fields = path_of(scope), await _fields(body)
    caller = _caller(service, path, headers, QueryParams(scope.get("query_string", b"")), fields, bearer)
    if caller is not None:
        service.limiter.take(caller.user, service.directory.limits_of(caller.user).rps)
        _refuse_writes(caller, scope.get("method", ""), path)
    _refuse_transfer_params(fields)
    mode = _mode(headers, fields, service.mode)
    if caller is not None and mode != service.mode and mode in ("write", "readwrite"):
        _require_writer(caller)
    repair = headers.get("x-memos-repair")
    if repair is not None and repair != "off":
        parse_policy(repair)
    policy = headers.get("x-memos-policy")
    if policy is not None:
        policy_named(policy)
    carries = path in MEMORY_PATHS
    memory = RequestMemory(
        caller=caller,
        mode=mode,
        carries_memory=carries,
        generates=path in GENERATING_PATHS,
        model=_model(path, headers, fields),
        repair=repair,
        policy=policy,
        conversation=_conversation(headers, fields) if carries else "",
    )
    if carries and caller is not None and (named := headers.get("x-memos-cubes")):
        memory.named = await to_thread.run_sync(_named, service, memory, caller.user, named)
    return memory


def _caller(
    service: MemoryService,
    path: str,
    headers: Headers,
    query: QueryParams,
    fields: Mapping[str, Any],
    bearer: Bearer,
) -> Caller | None:
    """Who is calling, with their groups; None for a request that names nobody. Raises Forbidden, BadInput."""
    caller = caller_of(bearer, header_user=_header_user(headers), body_user=_claimed_user(path, query, fields))
    return None if caller is None else replace(caller, groups=service.directory.groups_of(caller.user))


def _mode(headers: Headers, fields: Mapping[str, Any], default: Mode) -> Mode:
    """What the request wants of memory: header, then the body's `memory.mode`, then the server's. Raises BadInput."""
    options = fields.get("memory")
    mode = headers.get("x-memos-mode") or (options.get("mode") if isinstance(options, dict) else None) or default
    if mode not in MODES:
        raise BadInput(f"The memory mode is {str(mode)[:32]!r}; it is one of {', '.join(MODES)}.")
    return cast(Mode, mode)


def _model(path: str, headers: Headers, fields: Mapping[str, Any]) -> str | None:
    """What vLLM will take for the request's model: `/invocations` has it in a header, and not in the body."""
    model = headers.get("x-amzn-sagemaker-adapter-identifier") if path == "/invocations" else fields.get("model")
    return model if isinstance(model, str) else None


def _conversation(headers: Headers, fields: Mapping[str, Any]) -> str:
    """What the request calls its conversation: header, then the body's `memory.run_id`. Raises BadInput."""
    options = fields.get("memory")
    name = headers.get("x-memos-run-id") or (options.get("run_id") if isinstance(options, dict) else None) or ""
    if not isinstance(name, str) or len(name) > MAX_CONVERSATION:
        raise BadInput(f"The run id of a conversation is a text of {MAX_CONVERSATION} characters at most.")
    return name


def _refuse_writes(caller: Caller, method: str, path: str) -> None:
    """Keep keys that may only read from the routes that write. Raises Forbidden."""
    if writes_memory(method, path):
        _require_writer(caller)


def _require_writer(caller: Caller) -> None:
    if not caller.may("write"):
        raise Forbidden("This API key may only read memories; use one of a member or an admin.")


def writes_memory(method: str, path: str) -> bool:
    """Whether a request to one of our routes changes something."""
    reads = method in ("GET", "HEAD", "OPTIONS") or (method == "POST" and path.rstrip("/") in READING)
    return _under(OUR_PREFIXES, path) and not reads


def takes_thread(path: str) -> bool:
    """Whether a request is for a route of ours: those work in the server's threads, one each until it is answered."""
    return _under(OUR_PREFIXES, path) or _under(MEM0_PREFIXES, path)


def _under(prefixes: tuple[str, ...], path: str) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _refuse_new_weights(service: MemoryService, path: str) -> None:
    """Raises Forbidden and Conflict."""
    if path.startswith("/adapters/") or path in LOADING_PATHS:
        raise Forbidden("Adapters of this server are added, activated and removed under /v1/adapters.")
    if service.splicer is not None and path in WEIGHT_PATHS:
        raise Conflict(
            f"{path} could change the weights that K/V of memories were made with: start with --memory-splice off, "
            "or restart with the new weights."
        )


def _named(service: MemoryService, memory: RequestMemory, user: str, ids: str) -> tuple[MemCube, ...]:
    """The cubes that `x-memos-cubes` names, in its order. Raises NotFound for one that the request may not read."""
    wanted = [name.strip() for name in ids.split(",") if name.strip()]
    if len(wanted) > MAX_NAMED:
        raise BadInput(f"x-memos-cubes names {len(wanted)} cubes; name {MAX_NAMED} at most.")
    current_memory.set(memory)  # in this thread's copy of the context: the key's clearance holds here too
    return service.named(user, wanted)


def api_key(headers: Headers) -> str | None:
    """The key of `x-api-key` (Anthropic clients) or of `Authorization: Bearer`, which mem0's client calls `Token`."""
    if key := headers.get("x-api-key"):
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() in ("bearer", "token") else None


def _header_user(headers: Headers) -> str | None:
    """The user a header names, in UTF-8 where it is; ASGI hands headers on as Latin-1."""
    name = headers.get("x-memos-user-id") or headers.get("x-sm-user-id")
    try:
        return name.encode("latin-1").decode() if name else None
    except UnicodeDecodeError:
        return name


def _claimed_user(path: str, query: QueryParams, fields: Mapping[str, Any]) -> str | None:
    """The user that query or body name: `user_id`, then mem0's filter, then `user`."""
    filtered = user_in(fields.get("filters")) if FILTERED.fullmatch(path) else None
    claims = (fields.get("user_id"), query.get("user_id"), filtered, fields.get("user"))
    claim = next((claim for claim in claims if claim not in (None, "")), None)
    if claim is not None and not isinstance(claim, str):
        raise BadInput("user_id must be a string.")
    return claim


def _refuse_transfer_params(fields: Mapping[str, Any]) -> None:
    """`kv_transfer_params` steer the engine's KV cache: the server alone may set them. Raises BadInput."""
    sampling = fields.get("sampling_params")
    extra = sampling.get("extra_args") if isinstance(sampling, dict) else None
    for place in (fields, fields.get("vllm_xargs"), sampling, extra):
        if isinstance(place, dict) and place.get("kv_transfer_params") is not None:
            raise BadInput("kv_transfer_params is reserved for the server; leave it out.")


async def _fields(body: bytes) -> Mapping[str, Any]:
    """The JSON object in a body; empty for anything else, which vLLM then answers itself."""
    try:
        fields = await to_thread.run_sync(json.loads, body) if len(body) > LARGE_BODY else json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


async def _buffered(scope: Scope, headers: Headers, receive: Receive) -> tuple[bytes, Receive]:
    """The request's whole body, and a `receive` that yields it again and then what comes after it.

    Uploads of files carry no JSON and are left alone.
    """
    if scope["type"] != "http" or headers.get("content-type", "").startswith("multipart/"):
        return b"", receive
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return b"", _replay([message], receive)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    return body, _replay([{"type": "http.request", "body": body, "more_body": False}], receive)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    pending = list(messages)

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _refuse(error: MemosError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
        return
    await error_response(error)(scope, receive, send)
