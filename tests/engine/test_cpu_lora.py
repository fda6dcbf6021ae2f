"""vLLM's CPU ops for LoRA, as they are after the plugin has been loaded: rows without an adapter get none."""

from __future__ import annotations

import torch

from memos_vllm.engine import cpu_lora

SLOTS, ROWS, RANK, WIDTH = 2, 5, 4, 8
SLOT_OF = [0, -1, 1, -1, 0]


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, RANK, generator=generator)
    weights = torch.randn(SLOTS, 1, WIDTH, RANK, generator=generator)
    return inputs, weights, torch.tensor(SLOT_OF)


def expected(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows = [weights[slot, 0] @ inputs[row] if slot >= 0 else torch.zeros(WIDTH) for row, slot in enumerate(SLOT_OF)]
    return torch.stack(rows)


def test_rows_without_an_adapter_stay_as_they_are() -> None:
    cpu_lora.mend()
    cpu_lora.mend()
    from vllm.lora.ops import torch_ops
    from vllm.lora.punica_wrapper import punica_cpu

    inputs, weights, slots = drawn()
    for module in (torch_ops, punica_cpu):
        whole, part, runs = (torch.ones(ROWS, WIDTH) for _ in range(3))
        module.bgmv_expand(inputs, weights, whole, slots, add_inputs=True)
        module.bgmv_expand_slice(inputs, weights, part, slots, 0, WIDTH, add_inputs=True)
        starts, lengths = torch.arange(ROWS), torch.ones(ROWS, dtype=torch.long)
        module.sgmv_expand(inputs, weights, runs, starts, lengths, slots, ROWS, 1, ROWS, True)
        for output in (whole, part, runs):
            torch.testing.assert_close(output, 1 + expected(inputs, weights))
