"""A KV cube's K/V on the host, exact or in 8 bit, and how either lies in a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memos_vllm.activation.quantize import CODES, K_AXIS, V_AXIS, StoreDtype, dequantize, quantize, scale_shape

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""The tensors of a file, in the order of their bytes."""


@dataclass(frozen=True)
class KVCube:
    """A KV cube's payload on the host; k and v are `[layers, tokens, kv_heads, head_dim]`.

    origin: position of the first token at capture
    """

    k: torch.Tensor
    v: torch.Tensor
    origin: int

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    @property
    def store(self) -> StoreDtype:
        return "auto"

    @property
    def dtype(self) -> torch.dtype:
        return self.k.dtype

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"k": self.k, "v": self.v}

    def pack(self, store: StoreDtype) -> KVCube | PackedCube:
        """Itself for `auto`, else its 8-bit form. Raises ValueError when K/V are not finite."""
        if store == "auto":
            return self
        k, k_scale = quantize(self.k, store, K_AXIS)
        v, v_scale = quantize(self.v, store, V_AXIS)
        return PackedCube(k, v, k_scale, v_scale, self.origin, self.k.dtype, store)

    def unpack(self) -> KVCube:
        return self


@dataclass(frozen=True)
class PackedCube:
    """A KV cube in 8 bit; shapes as in the file. `dtype` is what it was captured in and unpacks to."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor
    v_scale: torch.Tensor
    origin: int
    dtype: torch.dtype
    store: StoreDtype

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Scales first: fp32 has to lie at multiples of 4 bytes."""
        return {"k_scale": self.k_scale, "v_scale": self.v_scale, "k": self.k, "v": self.v}

    def unpack(self) -> KVCube:
        k, v = dequantize(self.k, self.k_scale, self.dtype), dequantize(self.v, self.v_scale, self.dtype)
        return KVCube(k, v, self.origin)


Payload = KVCube | PackedCube


def file_layout(shape: Sequence[int], dtype: torch.dtype, store: StoreDtype) -> Layout:
    """The tensors in which a cube of `shape` (its k's) and `dtype` is stored."""
    whole = tuple(shape)
    if store == "auto":
        return {"k": (dtype, whole), "v": (dtype, whole)}
    scales = {"k_scale": scale_shape(whole, K_AXIS), "v_scale": scale_shape(whole, V_AXIS)}
    codes = (CODES[store], whole)
    return {name: (torch.float32, scale) for name, scale in scales.items()} | {"k": codes, "v": codes}


def tensor_nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def stored_nbytes(shape: Sequence[int], dtype: torch.dtype, store: StoreDtype) -> int:
    """Bytes of a cube's payload in RAM, and, but for a header of about 1 KB, in its file."""
    return sum(tensor_nbytes(*entry) for entry in file_layout(shape, dtype, store).values())
