"""vLLM's LoRA on CPUs, as it is after the plugin has been loaded: rows without an adapter get none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from memos_vllm.engine import cpu_lora

SLOTS, RANK, WIDTH, SCALE = 3, 4, 8, 0.5
IDS = [31, 7, 19]
"""Of the adapters in the slots."""
BATCHES = {
    "mixed": (0, 7, 7, 0, 0, 31, 19),
    "base model first and last": (0, 19, 0),
    "adapters alone": (7, 31, 31),
    "base model alone": (0, 0),
}
cases = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


def wrapper_of(batch: Sequence[int], is_prefill: bool) -> Any:
    cpu_lora.mend()
    cpu_lora.mend()
    wrapper = PunicaWrapperCPU(64, 16, "cpu")
    for earlier in ((0, 7), batch):  # what is known of the batch before must not stay
        mapping = LoRAMapping(index_mapping=(*earlier,), prompt_mapping=(*earlier,), is_prefill=is_prefill)
        wrapper.update_metadata(mapping, IDS, SLOTS, 100)
    return wrapper


def drawn(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, WIDTH, generator=generator)
    down = torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator)
    return inputs, down, torch.randn(SLOTS, 1, WIDTH, RANK, generator=generator)


def expected(batch: Sequence[int], inputs: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Row by row: `1 + scale * up @ down @ input`, and 1 for the base model's."""
    slots = [IDS.index(adapter) if adapter else None for adapter in batch]
    rows = [
        torch.zeros(WIDTH) if slot is None else SCALE * up[slot, 0] @ down[slot, 0] @ inputs[row]
        for row, slot in enumerate(slots)
    ]
    return 1 + torch.stack(rows)


@cases
@pytest.mark.parametrize("is_prefill", [True, False])
def test_linear_layers_leave_rows_without_an_adapter_as_they_are(batch: Sequence[int], is_prefill: bool) -> None:
    inputs, down, up = drawn(len(batch))
    output = torch.ones(len(batch), 2 * WIDTH)
    wrapper_of(batch, is_prefill).add_lora_linear(output, inputs, (down, down), (up, 2 * up), SCALE, (WIDTH, WIDTH))
    first, second = output.chunk(2, dim=1)
    torch.testing.assert_close(first, expected(batch, inputs, down, up))
    torch.testing.assert_close(second, expected(batch, inputs, down, 2 * up))


@cases
def test_stacked_slices_too(batch: Sequence[int]) -> None:
    """As layers give them whose adapters are sharded over several ranks."""
    inputs, down, up = drawn(len(batch))
    output, buffer = torch.ones(len(batch), WIDTH), torch.zeros(1, len(batch), RANK)
    wrapper = wrapper_of(batch, True)
    wrapper.add_shrink(buffer, inputs, (down,), SCALE)
    wrapper.add_expand(output, buffer, (up,), (WIDTH,))
    torch.testing.assert_close(output, expected(batch, inputs, down, up))


@cases
@pytest.mark.parametrize("is_prefill", [True, False])
def test_embeddings_and_logits_too(batch: Sequence[int], is_prefill: bool) -> None:
    inputs, down, up = drawn(len(batch))
    wrapper = wrapper_of(batch, is_prefill)
    logits, embedded = torch.ones(len(batch), WIDTH), torch.ones(len(batch), WIDTH)
    wrapper.add_lora_logits(logits, inputs, down, up, SCALE)
    torch.testing.assert_close(logits, expected(batch, inputs, down, up))
    wrapper.add_lora_embedding(embedded, inputs[:, :RANK].contiguous(), up)
    picked = torch.eye(RANK, WIDTH).expand(SLOTS, 1, RANK, WIDTH) / SCALE
    torch.testing.assert_close(embedded, expected(batch, inputs, picked, up))
