"""Requests to the servers under test, and the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from memos_vllm.bench.servers import SERVED_NAME, Server
from memos_vllm.vault import KVRecord, Vault

Messages = list[dict[str, str]]
RESET_SECONDS = 10.0
CAPTURE_SECONDS = 600.0
REQUEST_SECONDS = 600.0
MEASURED_TOKENS = 4
"""Tokens of an answer whose first one is timed."""


@dataclass(frozen=True)
class Timed:
    """One streamed answer: `ttft` in seconds, token counts as the server's usage says, its `x-memos-*` headers."""

    ttft: float
    prompt: int
    cached: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """One greedy answer as tokens. `alternatives[i]`: token id → log-probability at step i, where asked for."""

    prompt_ids: list[int]
    token_ids: list[int]
    headers: Mapping[str, str]
    alternatives: list[dict[int, float]]


class Client:
    """One connection to one server. Every method raises ServerFailed when the server does not do as asked."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS)

    def close(self) -> None:
        self._http.close()

    def count(self, text: str) -> int:
        """Tokens of a text, none of them added by the tokenizer."""
        return int(self._post("/tokenize", {"prompt": text, "add_special_tokens": False})["count"])

    def reset_prefix_cache(self) -> None:
        """Empty vLLM's prefix cache; it waits for blocks of requests that are just ending. KV cubes stay."""
        deadline = time.monotonic() + RESET_SECONDS
        while not self._post("/reset_prefix_cache", None)["success"]:
            if time.monotonic() > deadline:
                raise self._server.failure(f"did not reset its prefix cache within {RESET_SECONDS:.0f} s")
            time.sleep(0.01)

    def remember(self, user: str, texts: Sequence[str]) -> list[str]:
        """Add memories; returns their ids."""
        messages = [{"role": "user", "content": text} for text in texts]
        answer = self._post("/v1/memories", {"messages": messages, "user_id": user})
        return [memory["id"] for memory in answer["results"]]

    def wait_for_kv(self, memory_dir: Path, ids: Sequence[str]) -> list[KVRecord]:
        """Wait until every memory has its KV cube; read from the vault, so that waiting costs the server nothing."""
        deadline = time.monotonic() + CAPTURE_SECONDS
        with Vault.open(memory_dir, readonly=True) as vault:
            while not all(records := [vault.kv_of(memory) for memory in ids]):
                if time.monotonic() > deadline:
                    raise self._server.failure(f"did not capture {len(ids)} memories in {CAPTURE_SECONDS:.0f} s")
                time.sleep(0.002)
            return [record for found in records for record in found]

    def warm(self, messages: Messages) -> None:
        """Run a prompt so that the prefix cache holds it."""
        self._post("/v1/chat/completions", _chat(messages, 1))

    def stream(self, messages: Messages, headers: Mapping[str, str]) -> Timed:
        """A streamed chat completion, timed from sending the request to the first event that carries text."""
        options = {"stream": True, "stream_options": {"include_usage": True}, "skip_special_tokens": False}
        body = {**_chat(messages, MEASURED_TOKENS), **options}
        request = self._http.build_request("POST", "/v1/chat/completions", json=body, headers=dict(headers))
        first, usage = 0.0, None
        try:
            began = time.perf_counter()
            with closing(self._http.send(request, stream=True)) as response:
                for now, event in _events(response):
                    if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                        first = now
                    usage = event.get("usage") or usage
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise self._server.failure(f"broke off an answer ({type(error).__name__}: {error})") from error
        if not first or usage is None:
            raise self._server.failure("streamed an answer without text or usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Timed(first - began, int(usage["prompt_tokens"]), int(cached), response.headers)

    def chat_tokens(self, messages: Messages, headers: Mapping[str, str], tokens: int) -> Answer:
        """A greedy chat answer as tokens, with the prompt's tokens."""
        body = {**_chat(messages, tokens), "return_token_ids": True}
        response = self._send("/v1/chat/completions", body, headers)
        data = response.json()
        return Answer(data["prompt_token_ids"], data["choices"][0]["token_ids"], response.headers, [])

    def complete_tokens(self, prompt_ids: list[int], tokens: int, alternatives: int) -> Answer:
        """The greedy continuation of a tokenised prompt, with that many alternatives of each token."""
        sampling = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": alternatives}
        body = {"model": SERVED_NAME, "prompt": prompt_ids, **sampling}
        data = self._post("/v1/completions", {**body, "return_token_ids": True, "return_tokens_as_token_ids": True})
        (choice,) = data["choices"]
        tops = [{_token_id(name): value for name, value in top.items()} for top in choice["logprobs"]["top_logprobs"]]
        return Answer(prompt_ids, choice["token_ids"], {}, tops)

    def _post(self, path: str, body: Mapping[str, Any] | None) -> Any:
        return self._send(path, body, {}).json()

    def _send(self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> httpx.Response:
        try:
            response = self._http.post(path, json=body, headers=dict(headers))
        except httpx.HTTPError as error:
            raise self._server.failure(f"stopped answering ({type(error).__name__} at {path})") from error
        if response.status_code != httpx.codes.OK:
            raise self._server.failure(f"answered {path} with HTTP {response.status_code}: {response.text[:300]}")
        return response


def _chat(messages: Messages, tokens: int) -> dict[str, Any]:
    return {"model": SERVED_NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def _events(response: httpx.Response) -> Iterator[tuple[float, dict[str, Any]]]:
    """The server-sent events of an answer, each with the time of its arrival. Raises ValueError for an error event."""
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"HTTP {response.status_code}: {response.read()[:300].decode(errors='replace')}")
    for line in response.iter_lines():
        now = time.perf_counter()
        data = line.removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise ValueError(str(event["error"])[:300])
        yield now, event


def _token_id(name: str) -> int:
    """vLLM writes `token_id:42` for token 42."""
    return int(name.removeprefix("token_id:"))
