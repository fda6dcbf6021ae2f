"""Memory in vLLM's chat: two hooks into vLLM 0.32, each a method replaced on one instance.

`OnlineRenderer.preprocess_chat` is where `/v1/chat/completions`, `/v1/messages`, `/v1/responses` and `/invocations`
turn checked messages into tokens. There the caller's memories join the prompt. Tokenised prompts are handed on in
`kv_transfer_params["prompt_token_ids"]`, vLLM's own door for them, so that tool and reasoning parsers run as ever.

`EngineClient.generate` is where every route meets the engine. There the splice plan is attached to exactly the prompt
it was made for, and the engine's account of it is read from the outputs and kept from the client. There too a turn is
heard whose user wants memories made of it: what the user said, and the answer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from typing import Any

from anyio import to_thread
from vllm.exceptions import VLLMClientError
from vllm.sampling_params import RequestOutputKind

from memos_vllm.cube import MemCube
from memos_vllm.errors import MemosError
from memos_vllm.reader import Spoken
from memos_vllm.reader.sentences import MAX_TEXT
from memos_vllm.server import metrics
from memos_vllm.server.fair import TenantGate
from memos_vllm.server.injection import (
    REPORT_KEY,
    Adapter,
    Asked,
    EngineReport,
    RequestMemory,
    SplicePrompt,
    current_memory,
)
from memos_vllm.server.lookups import looked_up
from memos_vllm.server.prompt import Message, Split, Unrenderable, last_user_text, texts_of
from memos_vllm.server.rendering import ChatRenderer
from memos_vllm.server.service import MemoryService
from memos_vllm.server.turns import turn_keys
from memos_vllm.server.writing import MemoryForm, Turn, TurnWriter

logger = logging.getLogger(__name__)

ANSWER_RESERVE = 512
"""Tokens of the context that memories leave to the answer."""
HEARD_CHARS = 8000
"""Characters of an answer that a reader may look at."""


@dataclass(frozen=True)
class MemoryPrompt:
    """A prompt with memories: as tokens, or as messages where tokens cannot be had (`cause` says why)."""

    cubes: tuple[MemCube, ...]
    splice: SplicePrompt
    token_ids: list[int] | None = None
    messages: list[Message] | None = None


def fitting(lengths: Sequence[int], room: int) -> int:
    """How many memories, from the first, go into the room: leaving out the last keeps the prompt's beginning."""
    return sum(total <= room for total in accumulate(lengths))


class ChatHooks:
    """Puts memories into the prompts of one API server. `install` once, after vLLM has made its own state."""

    def __init__(
        self, service: MemoryService, renderer: ChatRenderer, online_renderer: Any, models: Any, engine_client: Any
    ) -> None:
        self._service = service
        self._chat_renderer = renderer
        self._online_renderer = online_renderer
        self._models = models
        self._engine_client = engine_client
        self._gate = TenantGate()
        self._plain_preprocess = online_renderer.preprocess_chat
        self._plain_generate = engine_client.generate

    def install(self) -> None:
        self._online_renderer.preprocess_chat = self.preprocess_chat
        self._engine_client.generate = self.generate

    async def preprocess_chat(self, request: Any, messages: list[Any], **rendering: Any) -> tuple[list[Any], list[Any]]:
        """vLLM's `preprocess_chat`, with memories where the request wants them. Memory trouble never fails a chat."""
        memory = current_memory.get()
        if memory is None or not (memory.wanted or memory.writes):
            return await self._plain_preprocess(request, messages, **rendering)  # type: ignore[no-any-return]
        messages = [_materialised(message) for message in messages]
        if memory.writes:
            memory.turn = _heard_turn(memory, request, messages)
        if not memory.wanted:
            return await self._plain_preprocess(request, messages, **rendering)  # type: ignore[no-any-return]
        salt = request.cache_salt
        try:
            prompt = await self._compose(memory, request, messages, rendering)
            if prompt is not None:
                return await self._render(memory, prompt, request, messages, rendering)
        except (MemosError, VLLMClientError) as error:
            logger.warning("memory is left out of a request: %s", error)
            fall_back(memory, "memory-error" if isinstance(error, MemosError) else "refused")
        except Exception:
            logger.exception("memory is left out of a request")
            fall_back(memory, "internal-error")
        request.cache_salt = salt
        memory.composed = True
        return await self._plain_preprocess(request, messages, **rendering)  # type: ignore[no-any-return]

    async def _compose(
        self, memory: RequestMemory, request: Any, messages: list[Message], rendering: dict[str, Any]
    ) -> MemoryPrompt | None:
        """The prompt with the caller's memories; None when there is nothing to say."""
        assert memory.caller is not None
        user, query = memory.caller.user, last_user_text(messages)
        if memory.named is not None:
            cubes = [*memory.named]
        elif await looked_up(self._service.vault, self._service.vault.is_bare, memory.caller.principals):
            return None
        else:
            choose = partial(
                self._service.choose, user, query, messages=messages, policy=memory.policy, known=memory.known
            )
            async with self._gate.inside(user):
                cubes = await to_thread.run_sync(choose)
        if any(cube.header.licence for cube in cubes):
            cubes = await to_thread.run_sync(self._service.uses.admitted, cubes)
        if not cubes:
            return None
        try:
            split = await self._chat_renderer.split(request, messages, rendering)
        except Unrenderable as error:
            return self._as_messages(cubes, messages, error.cause)
        limit = prompt_limit(request.build_tok_params(self._online_renderer.model_config))
        unspliceable = self._unspliceable(request) or await self._foreign_scaffold(split.scaffold)
        asked = Asked(user, query, unspliceable, memory.repair, self._adapter(request))
        async with self._gate.inside(user):
            prompt = await to_thread.run_sync(self._as_tokens, asked, cubes, messages, split, limit)
        if len(prompt.cubes) < len(cubes):
            fall_back(memory, "context-full")
        return prompt if prompt.cubes else None

    def _as_messages(self, cubes: Sequence[MemCube], messages: list[Message], cause: str) -> MemoryPrompt:
        """The memories as text in the client's messages, for vLLM to render and tokenise."""
        block = self._service.prompts.block([cube.text for cube in cubes])
        placed = self._service.prompts.place(messages, block)
        return MemoryPrompt(tuple(cubes), SplicePrompt(fallback=cause), messages=placed)

    async def _foreign_scaffold(self, scaffold: str) -> str | None:
        """`scaffold` where more than the template's own text stands before the memories: K/V behind it are not kept.

        A template may tell the date, so the usual scaffold is asked for again before a request is called unusual.
        """
        if scaffold != self._service.scaffold:
            self._service.scaffold = await self._chat_renderer.usual_scaffold()
        return None if scaffold == self._service.scaffold else "scaffold"

    def _unspliceable(self, request: Any) -> str | None:
        """Why a request's prompt must be computed in full; None when it need not."""
        base = not request.model or self._models.is_base_model(request.model)
        if not base and request.model not in self._models.lora_requests:
            return "adapter"
        return "prompt-logprobs" if getattr(request, "prompt_logprobs", None) is not None else None

    def _adapter(self, request: Any) -> Adapter | None:
        """The LoRA adapter that the request names as its model."""
        lora = self._models.lora_requests.get(request.model)
        return Adapter(lora.lora_name, lora.lora_path, lora) if lora else None

    def _as_tokens(
        self, asked: Asked, cubes: Sequence[MemCube], messages: list[Message], split: Split, limit: int
    ) -> MemoryPrompt:
        """The prompt as tokens; where the context is too short for all memories, some are left out."""
        service = self._service
        scaffold, pieces = service.prompts.scaffold_ids(split.scaffold), service.cut(asked, messages, split.rest)
        rest = [token for piece in pieces for token in piece.ids]
        memories = [service.tokens(cube) for cube in cubes]
        kept = fitting([len(ids) for ids in memories], limit - len(scaffold) - len(rest))
        cubes, memories = cubes[:kept], memories[:kept]
        splice = service.splice(asked, cubes, scaffold, memories, pieces)
        token_ids = [*scaffold, *(token for ids in memories for token in ids), *rest]
        return MemoryPrompt(tuple(cubes), splice, token_ids=token_ids)

    async def _render(
        self,
        memory: RequestMemory,
        prompt: MemoryPrompt,
        request: Any,
        messages: list[Message],
        rendering: dict[str, Any],
    ) -> tuple[list[Any], list[Any]]:
        """Let vLLM finish the memory prompt: checks, tool and reasoning parsers, cache salt."""
        if not memory.prompt_ids:
            memory.client_salt = request.cache_salt
        request.cache_salt = self._salt(memory, prompt.splice.digest)
        if prompt.token_ids is not None:
            request.kv_transfer_params = {"prompt_token_ids": prompt.token_ids}
        try:
            conversation, inputs = await self._plain_preprocess(request, prompt.messages or messages, **rendering)
        finally:
            request.kv_transfer_params = None
        memory.cubes, memory.splice, memory.prompt_ids = prompt.cubes, prompt.splice, inputs[0]["prompt_token_ids"]
        memory.composed = True
        if prompt.splice.fallback:
            fall_back(memory, prompt.splice.fallback)
        self._service.uses.note_prompt(prompt.cubes)
        if memory.named is None and memory.caller is not None:
            self._service.note_turn(memory.caller.user, messages, [cube.id for cube in prompt.cubes])
        metrics.prompts().labels("spliced" if prompt.splice.kv_transfer_params else "text").inc()
        return conversation, inputs

    def _salt(self, memory: RequestMemory, digest: str) -> str:
        """Keeps prefix-cache blocks apart: by tenant, by the client's own salt, by what a splice did to them."""
        assert memory.caller is not None
        parts = "\0".join((memory.caller.user, memory.client_salt or "", digest))
        return hmac.new(self._service.secret, parts.encode(), hashlib.sha256).hexdigest()

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        """vLLM's `generate`; observed where this request's memories went into the prompt, or its turn is heard."""
        memory = current_memory.get()
        carries = memory is not None and bool(memory.prompt_ids) and _is_prompt(prompt, memory.prompt_ids)
        if memory is not None and carries and memory.splice.kv_transfer_params is not None:
            sampling_params = sampling_params.clone()
            params = {"kv_transfer_params": memory.splice.kv_transfer_params}
            sampling_params.extra_args = {**(sampling_params.extra_args or {}), **params}
        outputs = self._plain_generate(prompt, sampling_params, request_id, **options)
        if memory is not None and memory.turn is not None:
            pieces = sampling_params.output_kind is RequestOutputKind.DELTA
            outputs, memory.turn = heard(memory.turn, outputs, self._service.turn_writer, pieces=pieces), None
        return observed(memory, outputs) if memory is not None and carries else outputs


async def observed(memory: RequestMemory, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The engine's outputs, with its report moved from the first one to `memory`."""
    async with aclosing(outputs):
        async for output in outputs:
            if memory.report is None:
                memory.report = _report(memory, output)
            output.kv_transfer_params = _without_report(output.kv_transfer_params)
            yield output


async def heard(
    turn: Turn, outputs: AsyncGenerator[Any, None], writer: TurnWriter, *, pieces: bool
) -> AsyncGenerator[Any, None]:
    """The engine's outputs; once they end, or the client has gone, the turn is handed on to be written.

    A turn that the engine never began to answer is not: its client was told of an error, and will ask again.
    pieces: an output holds what is new of the answer; otherwise, all of it so far.
    """
    began, answer = False, ""
    try:
        async with aclosing(outputs):
            async for output in outputs:
                began, answer = True, ((answer if pieces else "") + _first_text(output))[:HEARD_CHARS]
                yield output
    finally:
        if began:
            spoken = (*turn.spoken, Spoken("assistant", answer)) if answer else turn.spoken
            writer.submit(replace(turn, spoken=spoken))


def _first_text(output: Any) -> str:
    return next((choice.text for choice in output.outputs if choice.index == 0), "")


def _heard_turn(memory: RequestMemory, request: Any, messages: Sequence[Message]) -> Turn | None:
    """As `_turn`; a conversation that cannot be read makes no memories, and its chat goes on."""
    try:
        return _turn(memory, request, messages)
    except Exception:
        metrics.turns().labels("failed").inc()
        logger.exception("a chat turn makes no memories")
        return None


def _turn(memory: RequestMemory, request: Any, messages: Sequence[Message]) -> Turn | None:
    """What the user has said since the last answer; None where they said nothing, as when a tool has answered."""
    assert memory.caller is not None
    last = max((number for number, one in enumerate(messages) if one.get("role") == "assistant"), default=-1)
    said = ("\n".join(texts_of(message)) for message in messages[last + 1 :] if message.get("role") == "user")
    spoken = tuple(Spoken("user", text[:MAX_TEXT]) for text in said if text.strip())
    if not spoken:
        return None
    keys = turn_keys(memory.caller.user, messages)
    source = memory.conversation or getattr(request, "session_id", None) or f"chat-{keys[0].hex()}"
    form = MemoryForm(source=source, at=datetime.now(UTC))
    return Turn(memory.caller.user, spoken, form, memory.caller.clearance)


def _report(memory: RequestMemory, output: Any) -> EngineReport:
    report = EngineReport.read(output.kv_transfer_params, cached=output.num_cached_tokens)
    if report is None:
        cause = "unreported" if memory.splice.kv_transfer_params else None
        report = EngineReport.plain(
            cached=output.num_cached_tokens, prompt_tokens=len(memory.prompt_ids), fallback=cause
        )
    if report.fallback:
        metrics.fallbacks().labels(report.fallback).inc()
    for source in ("cached", "spliced", "repaired", "computed"):
        metrics.prompt_tokens().labels(source).inc(getattr(report, source))
    return report


def prompt_limit(tok_params: Any) -> int:
    """Tokens that a memory prompt may have: memories must not crowd out the answer.

    What the client asked for stays free, up to ANSWER_RESERVE and a quarter of the context: many clients ask for more
    than there is, and vLLM shortens that silently.
    """
    total = int(tok_params.max_total_tokens)
    return total - min(tok_params.max_output_tokens or ANSWER_RESERVE, ANSWER_RESERVE, total // 4)


def fall_back(memory: RequestMemory, cause: str) -> None:
    """Note that the request gets less than it asked for."""
    memory.fallback = cause
    metrics.fallbacks().labels(cause).inc()


def _without_report(params: dict[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in (params or {}).items() if key != REPORT_KEY} or None


def _is_prompt(prompt: Any, token_ids: list[int]) -> bool:
    return isinstance(prompt, dict) and prompt.get("prompt_token_ids") == token_ids


def _materialised(message: Any) -> Any:
    """The message with its content as a list: pydantic hands lists of parts on as iterators that run once."""
    content = message.get("content") if isinstance(message, dict) else None
    if content is not None and not isinstance(content, str | list):
        message["content"] = list(content)
    return message
