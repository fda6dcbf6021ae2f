"""What vLLM's entry points name. vLLM loads this in every process it starts, so imports wait until they are needed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin


def register() -> None:
    """`vllm.general_plugins`: lets `--kv-transfer-config`, MultiConnector's too, name MemosConnector without a path,
    and vLLM ask for adapters; mends what vLLM does with these on CPUs.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.platforms import current_platform

    from memos_vllm.engine import cpu_lora, lora_resolver

    with suppress(ValueError):  # registered before: vLLM may load plugins twice
        KVConnectorFactory.register_connector("MemosConnector", "memos_vllm.engine.connector", "MemosConnector")
    lora_resolver.register()
    if current_platform.is_cpu():
        cpu_lora.mend()


def endpoint_plugin() -> EndpointPlugin:
    """`vllm.endpoint_plugins`: the memory routes and the prompt wrap, for the API server only."""
    from memos_vllm.server.endpoint import MemosEndpoint

    return MemosEndpoint()
