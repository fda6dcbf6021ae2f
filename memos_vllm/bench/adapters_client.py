"""Requests of users with adapters: asked as each server wants them, checked for whose adapter answered, and timed."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from memos_vllm.bench.adapters_weights import MadeAdapter
from memos_vllm.bench.checks import CheckFailed
from memos_vllm.bench.servers import SERVED_NAME, Server, connections

BASE, VLLM, MEMOS = ARMS = ("base model", "vllm, LoRA", "memos, adapters")
"""Without LoRA; with vLLM's own, asked by model name; with the adapter that the caller's identity selects."""
ADAPTER = "bench"
"""What every user of the memos server calls their adapter."""
TIMEOUT = 300.0
SAMPLING = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


@dataclass(frozen=True)
class Asked:
    """One question of one user."""

    user: str
    text: str


@dataclass(frozen=True)
class Answered:
    """A greedy answer as tokens, and the tokens of its prompt."""

    prompt: list[int]
    tokens: list[int]


class Side:
    """One arm's server. Every method raises ServerFailed when the server does not do as asked, and CheckFailed when
    somebody else than the user's adapter answers.
    """

    def __init__(self, arm: str, server: Server, http: httpx.AsyncClient) -> None:
        self.arm, self._server, self._http = arm, server, http

    async def register(self, adapter: MadeAdapter) -> None:
        """Make an adapter its user's: known to memos from now on; at vLLM the engine has loaded it then."""
        if self.arm == MEMOS:
            files = [("files", (name, content)) for name, content in adapter.files.items()]
            headers = {"x-memos-user-id": adapter.user}
            told = (await self._post("/v1/adapters", headers=headers, data={"name": ADAPTER}, files=files)).json()
            if not (told["active"] == 1 and told["default"]):
                raise CheckFailed(f"the adapter of {adapter.user} was stored and does not answer: {told}")
        elif self.arm == VLLM:
            body = {"lora_name": adapter.user, "lora_path": str(adapter.folder)}
            await self._post("/v1/load_lora_adapter", json=body)

    async def bring(self, adapter: MadeAdapter, place: Path) -> None:
        """Register a new user's adapter whose files are elsewhere: vLLM's route wants them in a folder of its own."""
        if self.arm == VLLM:
            shutil.copytree(adapter.folder, place)
            adapter = MadeAdapter(adapter.user, place)
        await self.register(adapter)

    async def answer(self, asked: Asked, tokens: int) -> Answered:
        """The user's greedy answer, of that many tokens."""
        response = await self._post("/v1/chat/completions", **self._request(asked, tokens, {}))
        data = response.json()
        self._check(asked.user, data["model"], response.headers)
        ids = data["choices"][0]["token_ids"]
        if len(ids) != tokens:
            raise CheckFailed(f"'{self.arm}' answered {len(ids)} tokens, not {tokens}")
        return Answered(data["prompt_token_ids"], ids)

    async def batch(self, requests: Sequence[Asked], tokens: int, concurrency: int) -> float:
        """Seconds that it takes to have all answered, so many at a time."""
        waiting = iter(requests)
        began = time.perf_counter()
        await asyncio.gather(*(self._work(waiting, tokens) for _ in range(concurrency)))
        return time.perf_counter() - began

    async def _work(self, waiting: Iterable[Asked], tokens: int) -> None:
        for asked in waiting:
            await self.answer(asked, tokens)

    async def first_token(self, asked: Asked) -> float:
        """Seconds from sending the request to the first token of its streamed answer."""
        request = self._request(asked, 2, {"stream": True})
        began = time.perf_counter()
        try:
            async with self._http.stream("POST", "/v1/chat/completions", **request) as response:
                first: float | None = None
                async for event in _events(response):
                    if first is None and any(choice.get("token_ids") for choice in event["choices"]):
                        first, model = time.perf_counter() - began, event["model"]
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise self._server.failure(f"broke off an answer ({type(error).__name__}: {error})") from error
        if first is None:
            raise self._server.failure("streamed an answer without tokens")
        self._check(asked.user, model, response.headers)
        return first

    def _request(self, asked: Asked, tokens: int, more: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the HTTP client. vLLM's LoRA is named as the model; memos knows it by who asks."""
        model = asked.user if self.arm == VLLM else SERVED_NAME
        messages = [{"role": "user", "content": asked.text}]
        headers = {"x-memos-user-id": asked.user} if self.arm == MEMOS else {}
        body = {"model": model, "messages": messages, "max_tokens": tokens, **SAMPLING, **more}
        return {"json": body, "headers": headers}

    def _check(self, user: str, model: str, headers: httpx.Headers) -> None:
        wanted = {BASE: SERVED_NAME, VLLM: user, MEMOS: f"{ADAPTER}@v1"}[self.arm]
        named = headers.get("x-memos-adapter") if self.arm == MEMOS else model
        if (model, named) != (wanted, wanted) or "x-memos-fallback" in headers:
            cause = headers.get("x-memos-fallback", "no fallback")
            raise CheckFailed(f"'{self.arm}' answered {user} with {model} (adapter {named}, {cause}), not {wanted}")

    async def _post(self, path: str, **request: Any) -> httpx.Response:
        try:
            response = await self._http.post(path, **request)
        except httpx.HTTPError as error:
            raise self._server.failure(f"stopped answering ({type(error).__name__} at {path})") from error
        if response.status_code != httpx.codes.OK:
            raise self._server.failure(f"answered {path} with HTTP {response.status_code}: {response.text[:300]}")
        return response


@asynccontextmanager
async def side(arm: str, server: Server, concurrency: int) -> AsyncIterator[Side]:
    """Connections to an arm's server, kept until the block ends."""
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=connections(concurrency)) as http:
        yield Side(arm, server, http)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of an answer. Raises ValueError for an error."""
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"HTTP {response.status_code}: {(await response.aread())[:300].decode(errors='replace')}")
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            event = json.loads(data)
            if "error" in event:
                raise ValueError(str(event["error"])[:300])
            yield event
