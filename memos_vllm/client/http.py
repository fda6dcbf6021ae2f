"""The two clients: each call as a method that sends it, or that is awaited."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Self, TypeVar

import httpx
import msgspec

from memos_vllm.client import account_calls, adapter_calls, calls
from memos_vllm.client.call import Call
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


def _streamed(build: Callable[P, Call[Answer]]) -> Callable[Concatenate[MemosClient, P], Iterator[Answer]]:
    """The method that sends a call when its first answer is asked for, and yields one after another."""

    @functools.wraps(build)
    def method(client: MemosClient, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Answer]:
        return client.stream(build(*args, **kwargs))

    return method


def _async_streamed(
    build: Callable[P, Call[Answer]],
) -> Callable[Concatenate[AsyncMemosClient, P], AsyncIterator[Answer]]:
    """The method that does as `_streamed`'s, for `async for`."""

    @functools.wraps(build)
    def method(client: AsyncMemosClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Answer]:
        return client.stream(build(*args, **kwargs))

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
            with ExitStack() as opened:
                response = self._http.request(**_request(call, self._base, self._api_key, self._user, opened))
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error
        return _answer(call, response)

    def stream(self, call: Call[Answer]) -> Iterator[Answer]:
        """Send one call and yield what each line of its answer holds. Raises ApiError."""
        lines = _Lines(call)
        try:
            with (
                ExitStack() as opened,
                self._http.stream(**_request(call, self._base, self._api_key, self._user, opened)) as response,
            ):
                if not response.is_success:
                    response.read()
                    _refuse(response)
                for data in response.iter_bytes():
                    yield from lines.read(data)
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error

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
    set_access = _now(calls.set_access)
    share = _now(calls.share)
    revoke = _now(calls.revoke)
    provenance = _now(calls.provenance)
    health = _now(calls.health)
    plan = _now(account_calls.plan)
    export = _streamed(account_calls.export)
    snapshots = _now(account_calls.snapshots)
    snapshot = _now(account_calls.snapshot)
    restore_snapshot = _now(account_calls.restore_snapshot)
    drop_snapshot = _now(account_calls.drop_snapshot)
    pipeline = _now(account_calls.pipeline)
    log = _now(account_calls.log)
    verify_log = _now(account_calls.verify_log)
    usage = _now(account_calls.usage)
    consolidation = _now(account_calls.consolidation)
    allow_consolidation = _now(account_calls.allow_consolidation)
    forget_me = _now(account_calls.forget_me)
    adapters = _now(adapter_calls.adapters)
    adapter = _now(adapter_calls.adapter)
    add_adapter = _now(adapter_calls.add_adapter)
    activate_adapter = _now(adapter_calls.activate_adapter)
    deactivate_adapter = _now(adapter_calls.deactivate_adapter)
    rollback_adapter = _now(adapter_calls.rollback_adapter)
    remove_adapter = _now(adapter_calls.remove_adapter)
    adapter_file = _now(adapter_calls.adapter_file)
    train = _now(adapter_calls.train)
    retrain = _now(adapter_calls.retrain)
    trainings = _now(adapter_calls.trainings)
    training = _now(adapter_calls.training)
    cancel_training = _now(adapter_calls.cancel_training)
    resume_training = _now(adapter_calls.resume_training)


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
            with ExitStack() as opened:
                response = await self._http.request(**_request(call, self._base, self._api_key, self._user, opened))
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error
        return _answer(call, response)

    async def stream(self, call: Call[Answer]) -> AsyncIterator[Answer]:
        """Send one call and yield what each line of its answer holds. Raises ApiError."""
        lines = _Lines(call)
        try:
            with ExitStack() as opened:
                async with self._http.stream(
                    **_request(call, self._base, self._api_key, self._user, opened)
                ) as response:
                    if not response.is_success:
                        await response.aread()
                        _refuse(response)
                    async for data in response.aiter_bytes():
                        for item in lines.read(data):
                            yield item
        except httpx.HTTPError as error:
            raise _unanswered(self._base, error) from error

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
    set_access = _awaited(calls.set_access)
    share = _awaited(calls.share)
    revoke = _awaited(calls.revoke)
    provenance = _awaited(calls.provenance)
    health = _awaited(calls.health)
    plan = _awaited(account_calls.plan)
    export = _async_streamed(account_calls.export)
    snapshots = _awaited(account_calls.snapshots)
    snapshot = _awaited(account_calls.snapshot)
    restore_snapshot = _awaited(account_calls.restore_snapshot)
    drop_snapshot = _awaited(account_calls.drop_snapshot)
    pipeline = _awaited(account_calls.pipeline)
    log = _awaited(account_calls.log)
    verify_log = _awaited(account_calls.verify_log)
    usage = _awaited(account_calls.usage)
    consolidation = _awaited(account_calls.consolidation)
    allow_consolidation = _awaited(account_calls.allow_consolidation)
    forget_me = _awaited(account_calls.forget_me)
    adapters = _awaited(adapter_calls.adapters)
    adapter = _awaited(adapter_calls.adapter)
    add_adapter = _awaited(adapter_calls.add_adapter)
    activate_adapter = _awaited(adapter_calls.activate_adapter)
    deactivate_adapter = _awaited(adapter_calls.deactivate_adapter)
    rollback_adapter = _awaited(adapter_calls.rollback_adapter)
    remove_adapter = _awaited(adapter_calls.remove_adapter)
    adapter_file = _awaited(adapter_calls.adapter_file)
    train = _awaited(adapter_calls.train)
    retrain = _awaited(adapter_calls.retrain)
    trainings = _awaited(adapter_calls.trainings)
    training = _awaited(adapter_calls.training)
    cancel_training = _awaited(adapter_calls.cancel_training)
    resume_training = _awaited(adapter_calls.resume_training)


def _request(call: Call[Any], base: str, api_key: str | None, user: str | None, opened: ExitStack) -> dict[str, Any]:
    """Arguments of httpx's `request`. User ids travel as UTF-8 in a header, which wins over all other claims.

    Files stay open until `opened` is closed. Raises OSError where one cannot be read.
    """
    headers: dict[bytes, bytes] = {}
    if api_key:
        headers[b"authorization"] = f"Bearer {api_key}".encode()
    if named := call.user_id or user:
        headers[b"x-memos-user-id"] = named.encode()
    files = [("files", (path.name, opened.enter_context(path.open("rb")))) for path in call.files]
    return {
        "method": call.method,
        "url": base + call.path,
        "params": dict(call.params),
        "headers": headers,
        **({"data": call.body, "files": files} if files else {"json": call.body}),
    }


def _answer(call: Call[Answer], response: httpx.Response) -> Answer:
    if not response.is_success:
        _refuse(response)
    try:
        return call.decode(response.content)
    except (msgspec.MsgspecError, KeyError) as error:
        raise _foreign(call, error) from error


class _Lines(Generic[Answer]):
    """Decodes an answer line by line, as its parts come in."""

    def __init__(self, call: Call[Answer]) -> None:
        self._call = call
        self._rest = b""

    def read(self, data: bytes) -> Iterator[Answer]:
        """What the lines hold that end in these bytes. Raises ApiError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                yield self._call.decode(line)
            except msgspec.MsgspecError as error:
                raise _foreign(self._call, error) from error


def _refuse(response: httpx.Response) -> NoReturn:
    raise error_of(response.status_code, response.content, response.headers.get("retry-after"))


def _foreign(call: Call[Any], error: Exception) -> ApiError:
    return ApiError(f"{call.method} {call.path} answered something else than a memory server: {error}.")


def _unanswered(base: str, error: httpx.HTTPError) -> ConnectionFailed:
    return ConnectionFailed(f"{base} does not answer ({type(error).__name__}: {error}); is the server running?")
