"""The two clients: each call of `calls` as a method that sends it, or that is awaited."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
import msgspec

from memos_vllm.client import calls
from memos_vllm.client.calls import Call
from memos_vllm.client.errors import ApiError, ConnectionFailed, error_of

P = ParamSpec("P")
Answer = TypeVar("Answer")

TIMEOUT = 60.0
"""Seconds for one call; a search beside a busy engine on a small machine may take some."""


def _now(build: Callable[P, Call[Answer]]) -> Callable[Concatenate[MemosClient, P], Answer]:
    """The method that sends a call and returns its answer."""

    @functools.wraps(build)
    def method(client: MemosClient, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        return client.send(build(*args, **kwargs))

    return method


def _awaited(
    build: Callable[P, Call[Answer]],
) -> Callable[Concatenate[AsyncMemosClient, P], Coroutine[Any, Any, Answer]]:
    """The method that sends a call and is awaited for its answer."""

    @functools.wraps(build)
    async def method(client: AsyncMemosClient, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        return await client.send(build(*args, **kwargs))

    return method


class MemosClient:
    """Talks to one server. Threads may share it. Methods raise subclasses of ApiError.

    api_key: a key of the server; user_id: whose memories are meant where the key is bound to nobody; http: an own
    `httpx.Client`, for proxies, certificates or timeouts, which is then yours to close.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        user_id: str | None = None,
        timeout: float = TIMEOUT,
        http: httpx.Client | None = None,
    ) -> None:
        self._base = base_url.rstrip("/").removesuffix("/v1")
        self._api_key, self._user = api_key, user_id
        self._http, self._own = http or httpx.Client(timeout=timeout), http is None

    def send(self, call: Call[Answer]) -> Answer:
        """Send one call. Raises ApiError."""
        try:
            response = self._http.request(**_request(call, self._base, self._api_key, self._user))
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error
        return _answer(call, response)

    def close(self) -> None:
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    add = _now(calls.add)
    search = _now(calls.search)
    get = _now(calls.get)
    get_all = _now(calls.get_all)
    update = _now(calls.update)
    edit = _now(calls.edit)
    delete = _now(calls.delete)
    delete_many = _now(calls.delete_many)
    delete_all = _now(calls.delete_all)
    history = _now(calls.history)
    versions = _now(calls.versions)
    rollback = _now(calls.rollback)
    set_state = _now(calls.set_state)
    pin = _now(calls.pin)
    unpin = _now(calls.unpin)
    access = _now(calls.access)
    share = _now(calls.share)
    revoke = _now(calls.revoke)
    provenance = _now(calls.provenance)
    plan = _now(calls.plan)
    snapshots = _now(calls.snapshots)
    snapshot = _now(calls.snapshot)
    restore_snapshot = _now(calls.restore_snapshot)
    drop_snapshot = _now(calls.drop_snapshot)
    pipeline = _now(calls.pipeline)
    log = _now(calls.log)
    verify_log = _now(calls.verify_log)
    usage = _now(calls.usage)
    forget_me = _now(calls.forget_me)


class AsyncMemosClient:
    """MemosClient for asyncio: the same methods, to be awaited."""

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        *,
        api_key: str | None = None,
        user_id: str | None = None,
        timeout: float = TIMEOUT,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._base = base_url.rstrip("/").removesuffix("/v1")
        self._api_key, self._user = api_key, user_id
        self._http, self._own = http or httpx.AsyncClient(timeout=timeout), http is None

    async def send(self, call: Call[Answer]) -> Answer:
        """Send one call. Raises ApiError."""
        try:
            response = await self._http.request(**_request(call, self._base, self._api_key, self._user))
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error
        return _answer(call, response)

    async def close(self) -> None:
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    add = _awaited(calls.add)
    search = _awaited(calls.search)
    get = _awaited(calls.get)
    get_all = _awaited(calls.get_all)
    update = _awaited(calls.update)
    edit = _awaited(calls.edit)
    delete = _awaited(calls.delete)
    delete_many = _awaited(calls.delete_many)
    delete_all = _awaited(calls.delete_all)
    history = _awaited(calls.history)
    versions = _awaited(calls.versions)
    rollback = _awaited(calls.rollback)
    set_state = _awaited(calls.set_state)
    pin = _awaited(calls.pin)
    unpin = _awaited(calls.unpin)
    access = _awaited(calls.access)
    share = _awaited(calls.share)
    revoke = _awaited(calls.revoke)
    provenance = _awaited(calls.provenance)
    plan = _awaited(calls.plan)
    snapshots = _awaited(calls.snapshots)
    snapshot = _awaited(calls.snapshot)
    restore_snapshot = _awaited(calls.restore_snapshot)
    drop_snapshot = _awaited(calls.drop_snapshot)
    pipeline = _awaited(calls.pipeline)
    log = _awaited(calls.log)
    verify_log = _awaited(calls.verify_log)
    usage = _awaited(calls.usage)
    forget_me = _awaited(calls.forget_me)


def _request(call: Call[Any], base: str, api_key: str | None, user: str | None) -> dict[str, Any]:
    """Arguments of httpx's `request`. User ids travel as UTF-8 in a header, which wins over all other claims."""
    headers: dict[bytes, bytes] = {}
    if api_key:
        headers[b"authorization"] = f"Bearer {api_key}".encode()
    if named := call.user_id or user:
        headers[b"x-memos-user-id"] = named.encode()
    return {
        "method": call.method,
        "url": base + call.path,
        "params": dict(call.params),
        "headers": headers,
        "json": call.body,
    }


def _answer(call: Call[Answer], response: httpx.Response) -> Answer:
    if response.is_error or response.is_redirect:
        raise error_of(response.status_code, response.content, response.headers.get("retry-after"))
    try:
        return call.decode(response.content)
    except (msgspec.MsgspecError, KeyError) as error:
        raise ApiError(
            f"{call.method} {response.url.path} answered something else than a memory server: {error}."
        ) from error


def _unanswered(base: str, error: httpx.HTTPError) -> ConnectionFailed:
    return ConnectionFailed(f"{base} does not answer ({type(error).__name__}: {error}); is the server running?")
