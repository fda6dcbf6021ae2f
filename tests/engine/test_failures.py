"""KV that is missing, cut short, damaged or foreign: the answer is right, only slower, and the report says why."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from memos_kernels.layout import CpuVecLayout

from memos_vllm.activation.compose import Part
from memos_vllm.activation.files import KVLabel, read_kv, write_kv
from memos_vllm.activation.plan import PARAMS_KEY, prompt_hash, sign
from tests.engine.harness import SECRET, Engine, plan_for, prompt_of
from tests.engine.test_splice_plans import TOLERANCE, build


def truncate(path: Path, part: Part, engine: Engine) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path, part: Part, engine: Engine) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def empty(path: Path, part: Part, engine: Engine) -> None:
    path.write_bytes(b"")


def relabel(path: Path, part: Part, engine: Engine, identity: str | None = None, tokens: str | None = None) -> None:
    """Write the file anew, whole and checksummed, with another label."""
    label = KVLabel(part.key or "", engine.identity.digest(), prompt_hash(part.ids))
    other = replace(label, identity=identity or label.identity, tokens=tokens or label.tokens)
    write_kv(path, other, read_kv(path, label))


def of_another_model(path: Path, part: Part, engine: Engine) -> None:
    relabel(path, part, engine, identity="0" * 32)


def of_other_tokens(path: Path, part: Part, engine: Engine) -> None:
    relabel(path, part, engine, tokens=prompt_hash([1, 2, 3]))


def of_fewer_tokens(path: Path, part: Part, engine: Engine) -> None:
    label = KVLabel(part.key or "", engine.identity.digest(), prompt_hash(part.ids))
    cube = read_kv(path, label)
    write_kv(path, label, type(cube)(cube.k[:, :-1], cube.v[:, :-1], cube.origin))


DAMAGES: list[Callable[[Path, Part, Engine], None]] = [
    truncate,
    flip_a_byte,
    empty,
    of_another_model,
    of_other_tokens,
    of_fewer_tokens,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_unusable_kv_is_recomputed(engine: Engine, damage: Callable[[Path, Part, Engine], None]) -> None:
    scaffold, parts, rest = build(engine, (DAMAGES.index(damage), 40, [(0, 90), (2, 70)], 9))
    prompt, victim = prompt_of(scaffold, parts, rest), next(part for part in reversed(parts) if part.key)
    plan = plan_for(scaffold, parts, "full")
    plain = engine.ask(prompt)
    engine.forget_ram()
    damage(engine.path(victim), victim, engine)
    answer = engine.ask(prompt, plan)
    assert answer.tokens == plain.tokens
    assert answer.distance(plain) <= TOLERANCE
    assert answer.report["fallback"] == "load-failed"
    assert sum(answer.report[name] for name in ("cached", "spliced", "repaired", "computed")) == len(prompt)
    assert not engine.path(victim).exists(), "an unusable file must be made anew, not met again"


def test_missing_kv_is_prefilled_plainly(engine: Engine) -> None:
    scaffold, parts, rest = build(engine, (21, 40, [(0, 90), (0, 70)], 9))
    prompt = prompt_of(scaffold, parts, rest)
    engine.path(parts[1]).unlink()
    answer = engine.ask(prompt, plan_for(scaffold, parts, "none"))
    plain = engine.ask(prompt)
    assert answer.report["fallback"] == "kv-missing"
    assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE  # the first cube stands at its origin


@pytest.mark.parametrize("policy", ["none", "full"])
def test_kv_comes_from_disk_after_the_ram_is_gone(engine: Engine, policy: str) -> None:
    scaffold, parts, rest = build(engine, (22, 40, [(0, 90), (0, 70)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, policy)
    warm = engine.ask(prompt, plan)
    engine.forget_ram()
    cold = engine.ask(prompt, plan)
    again = engine.ask(prompt, plan)
    assert (warm.report["ram"], warm.report["disk"]) == (3, 0)
    assert (cold.report["ram"], cold.report["disk"]) == (0, 3)
    assert (again.report["ram"], again.report["disk"]) == (3, 0)
    assert warm.tokens == cold.tokens == again.tokens
    assert cold.distance(warm) == 0.0
    engine.worker.pool.check_integrity()


def test_a_plan_that_this_server_did_not_sign_is_refused(engine: Engine) -> None:
    scaffold, parts, rest = build(engine, (23, 40, [(0, 90)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "none")
    plain = engine.ask(prompt)
    forged = [
        sign(plan, b"another secret, 32 bytes in size"),
        {PARAMS_KEY: {"plan": "{}", "signature": ""}},
        {PARAMS_KEY: {}},
        {PARAMS_KEY: "x"},
        {PARAMS_KEY: {"plan": 3, "signature": None}},
    ]
    for params in forged:
        answer = engine.ask_raw(prompt, params)
        assert answer.report["fallback"] == "plan-refused"
        assert answer.report["spliced"] == 0
        assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE
    moved = engine.ask_raw([*prompt[:-60], *reversed(prompt[-60:])], sign(plan, SECRET))
    assert moved.report["fallback"] == "plan-refused", "a signed plan speaks of one prompt only"


def test_a_spliced_request_does_not_pollute_the_prefix_cache(engine: Engine) -> None:
    """Under the salt that carries the plan's digest, approximate K/V are met by the same plan only."""
    scaffold, parts, rest = build(engine, (24, 40, [(0, 120), (0, 90)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "none")
    fresh = engine.ask(prompt)
    spliced = engine.ask(prompt, plan, salt=plan.digest())
    plain = engine.ask(prompt, salt="public")
    assert plain.cached == 0
    assert plain.tokens == fresh.tokens and plain.distance(fresh) <= TOLERANCE
    again = engine.ask(prompt, plan, salt=plan.digest())
    assert again.report["cached"] > 0, "the same plan finds its own blocks"
    assert again.distance(spliced) <= TOLERANCE
    assert spliced.distance(fresh) > TOLERANCE


@pytest.mark.parametrize("policy", ["none", "head:16", "full"])
def test_a_window_already_cached_is_not_computed_again(engine: Engine, policy: str) -> None:
    scaffold, parts, rest = build(engine, (25, 33, [(4, 120), (0, 90)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, policy)
    first = engine.ask(prompt, plan, salt=policy)
    second = engine.ask(prompt, plan, salt=policy)
    assert second.report["cached"] >= 64
    assert second.report["repaired"] <= first.report["repaired"]
    assert sum(second.report[name] for name in ("cached", "spliced", "repaired", "computed")) == len(prompt)
    assert second.tokens == first.tokens and second.distance(first) <= TOLERANCE


def test_the_layout_equals_vllms_own_writer(engine: Engine) -> None:
    """`CpuVecLayout.write` against `cpu_attn_reshape_and_cache`: the same bytes in every slot of the cache."""
    import torch
    from vllm import _custom_ops as ops

    layout = CpuVecLayout(64)
    for block_size, dtype in itertools.product((32, 64, 128), (torch.float32, torch.bfloat16, torch.float16)):
        slots = torch.tensor(random.Random(0).sample(range(6 * block_size), 150))
        k, v = torch.randn(150, 2, 64).to(dtype), torch.randn(150, 2, 64).to(dtype)
        ours, theirs = (torch.full((6, 2, block_size, 128), float("nan"), dtype=dtype) for _ in range(2))
        layout.write(ours, slots // block_size, slots % block_size, k, v)
        halves = theirs.view(6, 2, 2 * block_size, 64).chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(k, v, *halves, slots, "vec")
        assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
        read_k, read_v = layout.read(theirs, slots // block_size, slots % block_size)
        assert torch.equal(read_k, k)
        assert torch.equal(read_v, v)


def test_blocks_of_a_failed_load_are_not_met_again(engine: Engine) -> None:
    """The same plan under the same salt, after the failure and once its cube has been captured anew, stays right."""
    scaffold, parts, rest = build(engine, (26, 40, [(0, 190), (0, 170)], 9))
    prompt, plan = prompt_of(scaffold, parts, rest), plan_for(scaffold, parts, "full")
    plain = engine.ask(prompt)
    engine.forget_ram()
    flip_a_byte(engine.path(parts[1]), parts[1], engine)
    failed = engine.ask(prompt, plan, salt="unlucky", tokens=1)
    assert failed.report["fallback"] == "load-failed"
    assert failed.distance(plain) <= TOLERANCE
    engine.capture(scaffold, parts[1].ids)
    again = engine.ask(prompt, plan, salt="unlucky")
    assert again.report["cached"] > 0
    assert again.tokens == plain.tokens
    assert again.distance(plain) <= TOLERANCE
