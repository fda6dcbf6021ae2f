"""8-bit storage of K/V: the error it makes, on random K/V and on those of the bundled model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import memos_vllm
from memos_vllm.activation.payload import KVCube, PackedCube, stored_nbytes
from memos_vllm.activation.quantize import (
    K_AXIS,
    V_AXIS,
    StoreDtype,
    dequantize,
    parse_store_dtype,
    quantize,
    scale_shape,
)
from memos_vllm.errors import BadInput

TINY = Path(memos_vllm.__file__).parent / "assets" / "tiny"
PROMPT = "".join(
    f"- {name}'s {thing} is {value}.\n"
    for name in ("Maya", "Noah", "Ana", "Omar", "Ines", "Paul", "Rosa", "Theo")
    for thing, value in (("car", "blue"), ("dog", "brown"), ("city", "Lima"), ("drink", "tea"))
)
QUESTION = "Which city is Omar's?"

ERROR: dict[StoreDtype, float] = {"int8": 0.01, "fp8": 0.04}
"""Largest relative L2 error of K, of V, and of what attention makes of them."""


@dataclass
class Bundled:
    """The bundled model in fp32, and K/V of PROMPT, `[layers, tokens, kv_heads, head_dim]`."""

    model: Any
    question: torch.Tensor
    cube: KVCube


@pytest.fixture(scope="module")
def bundled() -> Bundled:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY)
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    encoded = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        layers = model(encoded, use_cache=True).past_key_values.layers
    k = torch.stack([layer.keys[0].transpose(0, 1) for layer in layers])
    v = torch.stack([layer.values[0].transpose(0, 1) for layer in layers])
    return Bundled(model, tokenizer(QUESTION, return_tensors="pt").input_ids, KVCube(k, v, 0))


def next_tokens(bundled: Bundled, cube: KVCube) -> torch.Tensor:
    """Log-probabilities after each token of the question, which reads `cube` as its past: `[tokens, vocabulary]`."""
    from transformers import DynamicCache

    cache: Any = DynamicCache()
    for layer, (k, v) in enumerate(zip(cube.k, cube.v, strict=True)):
        cache.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], layer)
    with torch.no_grad():
        logits: torch.Tensor = bundled.model(bundled.question, past_key_values=cache).logits
    return logits[0].log_softmax(-1)


def random_cube(dtype: torch.dtype = torch.bfloat16, tokens: int = 256) -> KVCube:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 4, tokens, 2, 64, generator=generator).to(dtype)
    return KVCube(k, v, 0)


def relative(exact: torch.Tensor, other: torch.Tensor) -> float:
    return float((exact.float() - other.float()).norm() / exact.float().norm())


def attention(cube: KVCube) -> torch.Tensor:
    """What 64 random queries read out of a cube: `[layers, kv_heads, queries, head_dim]`, fp32."""
    k, v = cube.k.float().transpose(1, 2), cube.v.float().transpose(1, 2)
    queries = torch.randn(*k.shape[:2], 64, k.shape[-1], generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.scaled_dot_product_attention(queries, k, v)


def packed(cube: KVCube, store: StoreDtype) -> PackedCube:
    found = cube.pack(store)
    assert isinstance(found, PackedCube)
    return found


@pytest.mark.parametrize("store", ["int8", "fp8"])
@pytest.mark.parametrize("kind", ["random", "real"])
def test_the_error_of_keys_values_and_attention(bundled: Bundled, store: StoreDtype, kind: str) -> None:
    cube = bundled.cube if kind == "real" else random_cube(torch.float32)
    other = packed(cube, store).unpack()
    errors = relative(cube.k, other.k), relative(cube.v, other.v), relative(attention(cube), attention(other))
    assert max(errors) < ERROR[store]


@pytest.mark.parametrize(("store", "limit"), [("int8", 1e-4), ("fp8", 3e-3)])
def test_the_models_answer_hardly_moves(bundled: Bundled, store: StoreDtype, limit: float) -> None:
    exact = next_tokens(bundled, bundled.cube)
    other = next_tokens(bundled, packed(bundled.cube, store).unpack())
    divergence = (exact.exp() * (exact - other)).sum(-1)
    agreement = (exact.argmax(-1) == other.argmax(-1)).float().mean()
    assert float(divergence.mean()) < limit
    assert agreement == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("store", ["int8", "fp8"])
def test_half_the_room_and_the_dtype_comes_back(store: StoreDtype, dtype: torch.dtype) -> None:
    cube = random_cube(dtype)
    small = packed(cube, store)
    assert small.nbytes == stored_nbytes(cube.k.shape, dtype, store)
    assert small.nbytes < 0.55 * 2 * cube.k.numel() * 2
    assert small.unpack().k.dtype == small.unpack().v.dtype == dtype
    assert small.unpack().origin == cube.origin


def test_auto_stores_the_cube_itself() -> None:
    cube = random_cube()
    assert cube.pack("auto") is cube
    assert cube.unpack() is cube


@given(exponent=st.integers(-30, 30), seed=st.integers(0, 99), axis=st.sampled_from([K_AXIS, V_AXIS]))
@settings(deadline=None, max_examples=60)
def test_int8_is_within_half_a_step_at_every_scale(exponent: int, seed: int, axis: int) -> None:
    """Each value errs by at most half of largest / 127, the largest of those that share its scale."""
    values = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    codes, scale = quantize(values, "int8", axis)
    assert tuple(scale.shape) == scale_shape(tuple(values.shape), axis)
    found = dequantize(codes, scale, torch.float32)
    assert bool(((found - values).abs() <= 0.5001 * values.abs().amax(axis, keepdim=True) / 127).all())


@pytest.mark.parametrize("store", ["int8", "fp8"])
def test_zeros_and_the_largest_value_are_exact(store: StoreDtype) -> None:
    values = torch.zeros(1, 4, 1, 8)
    values[0, 0] = 3.0
    values[0, 1, 0, 0] = -3.0
    for axis in (K_AXIS, V_AXIS):
        assert torch.allclose(dequantize(*quantize(values, store, axis), torch.float32), values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    cube = random_cube()
    cube.v[1, 2, 0, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        cube.pack("int8")


def test_names() -> None:
    assert [parse_store_dtype(name) for name in ("auto", "int8", "fp8")] == ["auto", "int8", "fp8"]
    with pytest.raises(BadInput, match="auto, int8 or fp8"):
        parse_store_dtype("int4")
