"""Requests to the servers under test, and the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_TOKENS = {"stream": True, "return_token_ids": True, "return_tokens_as_token_ids": True, "skip_special_tokens": True}
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


@dataclass(frozen=True)
class Told:
    """A greedy answer, streamed: `ttft` in seconds, and the `alternatives` of every token as in Answer."""

    ttft: float
    prompt_ids: list[int]
    text: str
    token_ids: list[int]
    alternatives: list[dict[int, float]]
    headers: Mapping[str, str]


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
        events, response_headers = self._stream("/v1/chat/completions", body, headers)
        first = next((now for now, event in events if any(_content(choice) for choice in event["choices"])), None)
        usage = next((event["usage"] for _, event in reversed(events) if event.get("usage")), None)
        if first is None or usage is None:
            raise self._server.failure("streamed an answer without text or usage")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Timed(first, int(usage["prompt_tokens"]), int(cached), response_headers)

    def tell(self, messages: Messages, headers: Mapping[str, str], tokens: int, alternatives: int) -> Told:
        """A greedy chat answer of up to `tokens` tokens."""
        body = {"model": SERVED_NAME, "messages": messages, "max_tokens": tokens, "temperature": 0, **_TOKENS}
        body |= {"logprobs": True, "top_logprobs": alternatives}
        return self._told("/v1/chat/completions", body, headers)

    def tell_tokens(self, prompt_ids: Sequence[int], tokens: int, alternatives: int) -> Told:
        """The same for a tokenised prompt, without memory."""
        body = {"model": SERVED_NAME, "prompt": list(prompt_ids), "max_tokens": tokens, "temperature": 0, **_TOKENS}
        return self._told("/v1/completions", {**body, "logprobs": alternatives}, {})

    def _told(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Told:
        events, response_headers = self._stream(path, body, headers)
        choices = [(now, choice) for now, event in events for choice in event["choices"]]
        tops = [top for _, choice in choices for top in _tops(choice.get("logprobs"))]
        ids = [token for _, choice in choices for token in choice.get("token_ids") or ()]
        first = next((now for now, choice in choices if choice.get("token_ids")), None)
        prompts = [found for _, event in events for found in _prompt_ids(event)]
        if first is None or not prompts or len(tops) != len(ids):
            raise self._server.failure("streamed an answer without tokens, prompt or log-probabilities")
        return Told(first, prompts[0], "".join(_content(choice) for _, choice in choices), ids, tops, response_headers)

    def _stream(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[list[tuple[float, dict[str, Any]]], Mapping[str, str]]:
        """All events of an answer, each with the seconds from sending the request to its arrival; and the headers."""
        request = self._http.build_request("POST", path, json=body, headers=dict(headers))
        try:
            began = time.perf_counter()
            with closing(self._http.send(request, stream=True)) as response:
                return [(now - began, event) for now, event in _events(response)], response.headers
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise self._server.failure(f"broke off an answer ({type(error).__name__}: {error})") from error

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

    def _get(self, path: str, query: Mapping[str, str | int]) -> Any:
        return self._answer(path, lambda: self._http.get(path, params=dict(query))).json()

    def _send(self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> httpx.Response:
        return self._answer(path, lambda: self._http.post(path, json=body, headers=dict(headers)))

    def _answer(self, path: str, ask: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            response = ask()
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


def _content(choice: Mapping[str, Any]) -> str:
    return (choice.get("delta") or {}).get("content") or choice.get("text") or ""


def _tops(logprobs: Mapping[str, Any] | None) -> list[dict[int, float]]:
    """Log-probabilities by token id, as a chat or a completion tells them."""
    if not logprobs:
        return []
    if "content" in logprobs:
        steps = logprobs["content"] or ()
        return [{_token_id(top["token"]): top["logprob"] for top in step["top_logprobs"]} for step in steps]
    return [{_token_id(name): value for name, value in top.items()} for top in logprobs["top_logprobs"]]


def _prompt_ids(event: Mapping[str, Any]) -> list[list[int]]:
    """The prompt's tokens, which a chat tells beside its choices and a completion in them."""
    places = (event, *event["choices"])
    return [place["prompt_token_ids"] for place in places if place.get("prompt_token_ids")]


def _token_id(name: str) -> int:
    """vLLM writes `token_id:42` for token 42."""
    return int(name.removeprefix("token_id:"))
