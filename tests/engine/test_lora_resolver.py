"""What vLLM finds of adapters: each request its own, whatever others open at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolverRegistry

from memos_vllm.engine import lora_resolver
from memos_vllm.engine.lora_resolver import RESOLVER, OpenedAdapter, RequestAdapters, opened_adapter


def opened(asked: str | None, number: int) -> OpenedAdapter:
    return OpenedAdapter(asked, f"style@v{number}", LoRARequest(f"memos:{number}", number, f"/{number}"))


@pytest.fixture
def models() -> Any:
    """vLLM's own, without an engine, and with one module of the operator's."""
    made = OpenAIModelRegistry(None, [BaseModelPath("base", "/base")])
    made.lora_requests["public"] = LoRARequest("public", 1, "/public")
    lora_resolver.install(made)
    return made


async def found(models: Any, adapter: OpenedAdapter | None, name: str | None) -> tuple[bool, int | None, str]:
    """What a request that opened an adapter finds under a name, while others run."""
    opened_adapter.set(adapter)
    await asyncio.sleep(0)
    lora = models.lora_requests.get(name)
    assert lora is None or models.lora_requests[name] is lora
    await asyncio.sleep(0)
    return name in models.lora_requests, lora.lora_int_id if lora else None, models.model_name(lora)


def test_each_request_finds_its_own_adapter(models: Any) -> None:
    async def all_at_once() -> list[tuple[bool, int | None, str]]:
        return await asyncio.gather(
            found(models, opened("style", 8), "style"),
            found(models, opened("style", 9), "style"),
            found(models, None, "style"),
            found(models, None, "public"),
            found(models, opened("public", 10), "public"),
            found(models, opened("base", 11), "base"),
            found(models, opened(None, 12), None),
            found(models, opened("style", 13), "other"),
        )

    assert asyncio.run(all_at_once()) == [
        (True, 8, "style@v8"),
        (True, 9, "style@v9"),
        (False, None, "base"),
        (True, 1, "base"),
        (True, 10, "style@v10"),
        (True, 11, "style@v11"),
        (True, 12, "style@v12"),
        (False, None, "base"),
    ]
    assert isinstance(models.lora_requests, RequestAdapters) and [*models.lora_requests] == ["public"]


def test_vllm_can_ask_for_the_adapter_of_the_request_and_no_other() -> None:
    lora_resolver.register()
    lora_resolver.register()
    resolver = LoRAResolverRegistry.get_resolver(RESOLVER)

    async def asked(name: str, adapter: OpenedAdapter | None) -> LoRARequest | None:
        opened_adapter.set(adapter)
        return await resolver.resolve_lora("base", name)

    adapter = opened("style", 8)
    assert asyncio.run(asked("style", adapter)) is adapter.lora
    for name, other in (("style", None), ("../style", adapter), ("/etc", adapter), ("maya/style", adapter)):
        assert asyncio.run(asked(name, other)) is None
