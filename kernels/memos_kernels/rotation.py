"""How keys are turned when they move to another position."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary position embedding of a model (RoFormer, arXiv 2104.09864, eq. 14), as far as moved keys need it.

    inv_freq: fp32 `[rotary_dim / 2]`, radians per position, frequency scaling (linear, llama3, YaRN) included; a factor
    on cosines and sines, as YaRN has, is in the captured keys already and does not belong here. Dimensions past
    rotary_dim are not turned.
    interleaved: dimensions 2 i and 2 i + 1 are a pair (GPT-J style); otherwise i and i + rotary_dim / 2 (NeoX style).
    """

    inv_freq: torch.Tensor
    interleaved: bool = False

    @property
    def rotary_dim(self) -> int:
        return 2 * self.inv_freq.numel()

    def cos_sin(self, delta: int) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 `[rotary_dim / 2]` each, on the host: cosine and sine of the angle by which `delta` positions turn.

        The angle is taken in fp64: at 131,072 positions fp32 would be wrong in the third decimal.
        """
        angle = delta * self.inv_freq.double().cpu()
        return angle.cos().float(), angle.sin().float()
