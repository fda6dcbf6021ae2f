"""How a request gets its caller's adapter from vLLM 0.32.

vLLM looks a request's model up in one dict, `OpenAIServingModels.lora_requests`, and names the answer's model by
`OpenAIServingModels.model_name`. Both are replaced on the one instance: the dict by one that also knows the adapter
which was opened for the request that is being served, and nobody else's. So no list of users' adapters grows in vLLM,
no name of one user is ever found by another, and VLLM_ALLOW_RUNTIME_LORA_UPDATING, which opens vLLM's load route and
forbids several API servers, stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

RESOLVER = "memos"


@dataclass(frozen=True)
class OpenedAdapter:
    """The adapter of one request. asked: the model that the request names; served: what its answer calls the model."""

    asked: str | None
    served: str
    lora: LoRARequest


opened_adapter: ContextVar[OpenedAdapter | None] = ContextVar("memos_adapter", default=None)
"""The adapter that the request being served may use; None for the base model."""


class RequestAdapters(dict[str, LoRARequest]):
    """vLLM's `lora_requests`: the modules it was started with, and before them the adapter of the current request."""

    def __contains__(self, name: object) -> bool:
        return _opened(name) is not None or super().__contains__(name)

    def __getitem__(self, name: str) -> LoRARequest:
        return _opened(name) or super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        return _opened(name) or super().get(name, default)


class MemosResolver(LoRAResolver):
    """For vLLM's own question, which it asks where VLLM_ALLOW_RUNTIME_LORA_UPDATING is on.

    vLLM keeps what a resolver answers for every later request, whoever sends it. So the answer is the adapter that was
    opened for this very request, which vLLM has found before, and for everybody else's names that there is none.
    """

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """See `LoRAResolver.resolve_lora`."""
        return _opened(lora_name)


def register() -> None:
    """Enter the resolver in vLLM's list. For every process, as often as it likes."""
    if RESOLVER not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(RESOLVER, MemosResolver())


def install(models: Any) -> None:
    """Let requests find their adapters in vLLM's `OpenAIServingModels`; once for each instance."""
    models.lora_requests = RequestAdapters(models.lora_requests)
    models.model_name = _naming(models.model_name)


def _opened(name: object) -> LoRARequest | None:
    opened = opened_adapter.get()
    return opened.lora if opened is not None and opened.asked == name else None


def _naming(plain: Callable[[LoRARequest | None], str]) -> Callable[[LoRARequest | None], str]:
    def model_name(lora_request: LoRARequest | None = None) -> str:
        opened = opened_adapter.get()
        if opened is not None and lora_request == opened.lora:
            return opened.served
        return plain(lora_request)

    return model_name
