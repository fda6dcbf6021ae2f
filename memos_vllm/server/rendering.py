"""vLLM's chat template rendering, asked for text in which the memory place can be found."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams, merge_kwargs
from vllm.renderers.chat_utils import ChatTemplateResolutionError, has_non_text_content

from memos_vllm.server.prompt import Message, PromptBuilder, Split, Unrenderable

_TEXT_CHANGING_OPTIONS = ("echo", "add_special_tokens", "truncate_prompt_tokens")


class ChatRenderer:
    """Renders chat requests as vLLM's `OnlineRenderer.preprocess_chat` does, short of tokenising them."""

    def __init__(self, online_renderer: Any, prompts: PromptBuilder) -> None:
        self._online = online_renderer
        self._prompts = prompts

    async def split(self, request: Any, messages: list[Message], rendering: dict[str, Any]) -> Split:
        """The request's text before and after the memory place.

        `rendering` holds the keyword arguments of `preprocess_chat`. Raises Unrenderable for requests whose prompt must
        come from vLLM itself.
        """
        if has_non_text_content(messages):
            raise Unrenderable("multimodal")
        if any(getattr(request, option, None) for option in _TEXT_CHANGING_OPTIONS):
            raise Unrenderable("prompt-options")
        params = _chat_params(request, rendering)

        async def render(candidate: list[Message]) -> str:
            try:
                _, prompt = await self._online.renderer.render_messages_async(candidate, params)
            except (VLLMClientError, ChatTemplateResolutionError) as error:
                raise Unrenderable("template") from error
            if "prompt" not in prompt:
                raise Unrenderable("tokenizer")
            return str(prompt["prompt"])

        return await self._prompts.split(messages, render)

    async def usual_scaffold(self) -> str | None:
        """What stands before the memories of a chat without tools and options; None where the template has no place."""
        rendering = {
            "default_template": self._online.chat_template,
            "default_template_content_format": self._online.chat_template_content_format,
            "default_template_kwargs": self._online.default_chat_template_kwargs,
        }
        messages: list[Message] = [{"role": "user", "content": "Hello"}]
        try:
            return (await self.split(ChatCompletionRequest(messages=messages), messages, rendering)).scaffold
        except Unrenderable:
            return None


def _chat_params(request: Any, rendering: dict[str, Any]) -> ChatParams:
    own = {"tools": rendering.get("tool_dicts"), "tokenize": False}
    params = request.build_chat_params(rendering["default_template"], rendering["default_template_content_format"])
    return params.with_defaults(merge_kwargs(rendering["default_template_kwargs"], own))
