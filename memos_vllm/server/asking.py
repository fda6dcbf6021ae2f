"""Asks the served model what is worth remembering: vLLM 0.32's own chat serving, in this process, without HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.exceptions import VLLMError

from memos_vllm.engine.lora_resolver import opened_adapter
from memos_vllm.errors import ReaderFailed
from memos_vllm.reader.model import MAX_CHARS
from memos_vllm.server.injection import current_memory

ANSWER_TOKENS = 512
"""Most tokens of an answer; of a short context a quarter."""
CHARS_PER_TOKEN = 2
"""Fewer than texts have, so that a conversation cut to so many characters fits."""
PATIENCE = 30.0
"""Seconds that a question waits for an engine with room. After that the rules read: users' requests come first."""
TIMEOUT = 120.0
"""Seconds that an answer may take."""
GRACE = 5.0
"""Seconds on top, after which the server's event loop is taken for dead."""
STOPPED = "The server stops and asks its model nothing any more."


class ServedModel:
    """Questions to the base model on the server's event loop; call it from a loop of another thread.

    has_room: whether the engine does little enough for work that can wait; secret: keeps tenants' prefix-cache blocks
    apart.
    """

    def __init__(self, serving_chat: Any, has_room: Callable[[], bool], secret: bytes) -> None:
        self._serving, self._has_room, self._secret = serving_chat, has_room, secret
        self._loop = asyncio.get_running_loop()
        context = int(serving_chat.model_config.max_model_len)
        self._answer_tokens = min(ANSWER_TOKENS, context // 4)
        self.max_chars = min(MAX_CHARS, CHARS_PER_TOKEN * (context - self._answer_tokens) // 2)

    async def __call__(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], user: str) -> str:
        """The model's answer, JSON under the schema unless it was cut. Raises ReaderFailed."""
        question = self._ask(messages, schema, user)
        try:
            asked = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError as error:  # the loop is closed
            question.close()
            raise ReaderFailed(STOPPED) from error
        try:
            async with asyncio.timeout(PATIENCE + TIMEOUT + GRACE):
                return await asyncio.wrap_future(asked)
        except (asyncio.CancelledError, TimeoutError) as error:
            raise ReaderFailed(STOPPED) from error

    async def _ask(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], user: str) -> str:
        current_memory.set(None)  # this is nobody's chat: no memories enter it, and the base model answers
        opened_adapter.set(None)
        try:
            async with asyncio.timeout(PATIENCE):
                while not self._has_room():  # noqa: ASYNC110 - vLLM has no event for it
                    await asyncio.sleep(0.05)
            async with asyncio.timeout(TIMEOUT):
                answer = await self._serving.create_chat_completion(self._request(messages, schema, user))
        except TimeoutError as error:
            raise ReaderFailed("The engine has no time for the reader now.") from error
        except (VLLMError, ValueError) as error:
            raise ReaderFailed(f"The model cannot be asked what to remember: {error}") from error
        if not isinstance(answer, ChatCompletionResponse):
            raise ReaderFailed(f"The model cannot be asked what to remember: {answer.error.message}")
        return answer.choices[0].message.content or ""

    def _request(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], user: str) -> Any:
        salt = hmac.new(self._secret, f"reader\0{user}".encode(), hashlib.sha256).hexdigest()
        return ChatCompletionRequest(
            model=self._serving.models.base_model_paths[0].name,
            messages=[*messages],
            temperature=0.0,
            max_completion_tokens=self._answer_tokens,
            cache_salt=salt,
            chat_template_kwargs={"enable_thinking": False},
            response_format={"type": "json_schema", "json_schema": {"name": "memories", "schema": {**schema}}},
        )
