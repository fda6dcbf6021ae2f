"""What the Triton kernels share: the table of layer caches, tiles, and rows on their way to and from the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

TILE_TOKENS = 16
"""Tokens of one head that one program moves: with 128 dimensions of 16 bits, 4 KiB of K and as much of V."""


@triton.jit
def slot_rows(table, start, length, block_size, block_stride, head_stride, token_stride, tile_tokens: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program's tokens and head: token numbers, offsets of their rows in a layer's cache, and a mask."""
    tokens = tl.program_id(1) * tile_tokens + tl.arange(0, tile_tokens)
    inside = tokens < length
    positions = start + tokens
    blocks = tl.load(table + positions // block_size, mask=inside, other=-1).to(tl.int64)
    places = (positions % block_size).to(tl.int64)
    head = tl.program_id(0).to(tl.int64)
    return tokens, blocks * block_stride + head * head_stride + places * token_stride, inside & (blocks >= 0)


@lru_cache(maxsize=8)
def _addresses(pointers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(pointers, dtype=torch.int64, device=device)


def layer_table(caches: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 `[layers]`, on the caches' device: where each layer's cache begins."""
    return _addresses(tuple(cache.data_ptr() for cache in caches), caches[0].device)


def alignment(caches: Sequence[torch.Tensor]) -> int:
    """Bytes: 16, the widest access of a GPU thread, or that of an element when a cache begins elsewhere."""
    return 16 if all(cache.data_ptr() % 16 == 0 for cache in caches) else caches[0].element_size()


def table_on(block_table: torch.Tensor, block_size: int, start: int, length: int, cache: torch.Tensor) -> torch.Tensor:
    """The block table on the cache's device. Raises IndexError when it is too short, or, being on the host, wrong."""
    if start < 0 or start + length > block_table.numel() * block_size:
        raise IndexError("the block table is too short for the tokens")
    if not block_table.is_cuda and block_table.numel() and int(block_table.max()) >= cache.shape[0]:
        raise IndexError("a block id is past the end of the cache")
    return block_table.to(cache.device, non_blocking=True)


def grid(length: int, heads: int, layers: int) -> tuple[int, int, int]:
    """Heads first: the programs that run at one time then share the tokens' rows."""
    return heads, triton.cdiv(length, TILE_TOKENS), layers
