"""Cases that every capture and splice implementation is held to, against the fp32 oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from memos_kernels.capture import reference as capture_reference
from memos_kernels.layout import CpuVecLayout, Layout, StridedLayout
from memos_kernels.rotation import Rotation
from memos_kernels.splice import reference as splice_reference

EPSILON = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Of a result's size: two units in the last place of the 16-bit types (truncation allowed), four of fp32."""
NAN = float("nan")

ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}
"""vLLM 0.32's physical layouts: which of layer, block, head, token and content each dimension of memory is."""

Splice = Callable[[Sequence[torch.Tensor], torch.Tensor, int, torch.Tensor, torch.Tensor, int, Rotation], None]
"""caches, block table, start, k, v, delta, rotation."""
Capture = Callable[[Sequence[torch.Tensor], torch.Tensor, int, torch.Tensor, torch.Tensor], None]
"""caches, block table, start, k and v to fill."""


@dataclass(frozen=True)
class Case:
    """One call: shapes, where the tokens lie, and how far keys move."""

    dtype: torch.dtype = torch.float32
    block_size: int = 32
    head_dim: int = 64
    heads: int = 2
    layers: int = 2
    start: int = 0
    length: int = 32
    delta: int = 0
    rotary_dim: int = 64
    interleaved: bool = False
    skipped: frozenset[int] = field(default_factory=frozenset)
    seed: int = 0

    @property
    def rope(self) -> Rotation:
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32) / self.rotary_dim
        return Rotation(10000.0**-exponents, self.interleaved)

    @property
    def table(self) -> torch.Tensor:
        """Blocks in no order, those numbered in `skipped` replaced by -1."""
        needed = (self.start + self.length - 1) // self.block_size + 1
        table = torch.randperm(needed + 3, generator=self.generator)[:needed]
        table[[number for number in self.skipped if number < needed]] = -1
        return table

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V, cut out of a longer cube: layers lie apart."""
        shape = (2, self.layers, self.length + 5, self.heads, self.head_dim)
        k, v = torch.randn(shape, generator=self.generator).to(self.dtype)[:, :, 2 : 2 + self.length]
        return k, v

    def poisoned(self, order: str = "LBHNC", device: str = "cpu") -> list[torch.Tensor]:
        """Caches full of NaN, `[num_blocks, heads, block_size, 2 * head_dim]` each, in one of vLLM's layouts."""
        blocks = (self.start + self.length - 1) // self.block_size + 4
        sizes = (self.layers, blocks, self.heads, self.block_size, 2 * self.head_dim)
        place = ORDERS[order]
        memory = torch.full([sizes[dim] for dim in place], NAN, dtype=self.dtype, device=device)
        return list(memory.permute([place.index(dim) for dim in range(5)]))

    def held(self) -> torch.Tensor:
        """Bool `[length]`: whether a token has a slot."""
        return self.table[torch.arange(self.start, self.start + self.length) // self.block_size] >= 0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int32 if a.element_size() == 4 else torch.int16
    return torch.equal(a.cpu().contiguous().view(kind), b.cpu().contiguous().view(kind))


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    """Within the dtype's tolerance of the pair of numbers that a result comes from: NaN where and only where wanted."""
    got, wanted = got.float().cpu(), wanted.float().cpu()
    size = wanted.nan_to_num().abs().max()
    return bool(((got - wanted).nan_to_num().abs() <= EPSILON[dtype] * size).all()) and torch.equal(
        got.isnan(), wanted.isnan()
    )


def check_splice(case: Case, layout: Layout, splice: Splice, order: str = "LBHNC", device: str = "cpu") -> None:
    """As the fp32 oracle has it within the dtype's tolerance; values, unturned keys and neighbours to the bit."""
    ours, plain, exact = (case.poisoned(order, device) for _ in range(3))
    exact = [cache.float() for cache in exact]
    k, v = case.rows()
    splice(ours, case.table, case.start, k, v, case.delta, case.rope)
    at = (case.table, case.block_size, case.start)
    splice_reference.splice(plain, layout, *at, k, v, 0, case.rope)
    splice_reference.splice(exact, layout, *at, k.float(), v.float(), case.delta, case.rope)
    turned = torch.zeros(2 * case.head_dim, dtype=torch.bool)
    turned[: case.rotary_dim] = case.delta != 0
    for cache, unturned, wanted in zip(ours, plain, exact, strict=True):
        assert close(cache, wanted, case.dtype)
        if isinstance(layout, StridedLayout):
            assert same_bits(cache[..., ~turned], unturned[..., ~turned])
        elif case.delta == 0:
            assert same_bits(cache, unturned)
        else:
            values = case.head_dim * case.block_size
            assert same_bits(cache.flatten(2)[..., values:], unturned.flatten(2)[..., values:])
            assert torch.equal(cache.isnan(), unturned.isnan())


def check_capture(case: Case, layout: Layout, capture: Capture, order: str = "LBHNC", device: str = "cpu") -> None:
    """To the bit what the oracle reads; rows of skipped tokens, and the caches, are left alone."""
    caches = case.poisoned(order, device)
    for cache in caches:
        noise = torch.randn(cache.shape, generator=case.generator).to(case.dtype)
        cache.copy_(noise)
    before = [cache.clone() for cache in caches]
    shape = (case.layers, case.length, case.heads, case.head_dim)
    k, v = (torch.full(shape, NAN, dtype=case.dtype) for _ in range(2))
    capture(caches, case.table, case.start, k, v)
    wanted = (torch.full(shape, NAN, dtype=case.dtype), torch.full(shape, NAN, dtype=case.dtype))
    capture_reference.capture(caches, layout, case.table, case.block_size, case.start, case.length, wanted)
    assert same_bits(k, wanted[0]) and same_bits(v, wanted[1])
    assert torch.equal(k.isnan().any(dim=(0, 2, 3)), ~case.held())
    assert all(same_bits(cache, copy) for cache, copy in zip(caches, before, strict=True))


def layout_of(case: Case, kind: type[CpuVecLayout] | type[StridedLayout]) -> Layout:
    return kind(case.head_dim)


PAGE_EDGES = [(start, length) for start in (0, 1, 17, 31, 32) for length in (1, 15, 16, 17, 31, 32, 33, 64, 65, 130)]
"""Around blocks of 32 tokens."""


@st.composite
def cases(draw: st.DrawFn, block_sizes: Sequence[int], head_dims: Sequence[int], longest: int = 300) -> Case:
    """Any call with these block and head sizes."""
    head_dim = draw(st.sampled_from(head_dims))
    rotary_dim = 2 * draw(st.integers(1, head_dim // 2))
    return Case(
        dtype=draw(st.sampled_from(list(EPSILON))),
        block_size=draw(st.sampled_from(block_sizes)),
        head_dim=head_dim,
        heads=draw(st.integers(1, 3)),
        layers=draw(st.integers(1, 3)),
        start=draw(st.integers(0, 150)),
        length=draw(st.integers(1, longest)),
        delta=draw(st.sampled_from([0, 1, -1, 500, -4096, 131072, -131072])),
        rotary_dim=draw(st.sampled_from([head_dim, rotary_dim])),
        interleaved=draw(st.booleans()),
        skipped=draw(st.frozensets(st.integers(0, 5), max_size=2)),
        seed=draw(st.integers(0, 999)),
    )
