"""KV that is missing, cut short, damaged or foreign: the answer is right, only slower, and the report says why."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from memos_vllm.activation.compose import Part, capture_plan
from memos_vllm.activation.files import KVLabel, read_kv, write_kv
from memos_vllm.activation.identity import kv_key
from memos_vllm.activation.plan import PARAMS_KEY, prompt_hash, sign
from memos_vllm.engine.rope import check_rotation
from memos_vllm.errors import StartError
from tests.engine.harness import SECRET, Engine, plan_for, prompt_of, wait_for
from tests.engine.test_splice_plans import TOLERANCE, build, tokens


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
    plain = engine.ask(prompt)
    engine.path(parts[1]).unlink()
    engine.forget_ram()
    for known in (False, True):  # found out the hard way, unless a scan of the folder came first; then known
        answer = engine.ask(prompt, plan_for(scaffold, parts, "none"))
        assert answer.report["fallback"] == "kv-missing" or (answer.report["fallback"] == "load-failed" and not known)
        assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE  # the first cube is at its origin


def test_kv_that_cannot_be_written_is_used_from_ram_and_then_missed(engine: Engine) -> None:
    """A file stands where the cube's folder should be: what a full disk does to a capture, for one cube alone."""
    rng = random.Random(27)
    scaffold, ids = engine.scaffold(tokens(rng, 40)), tokens(rng, 80)
    part = Part(ids, kv_key(engine.identity, "maya", scaffold.ids, ids))
    folder = engine.path(part).parent
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.touch()
    prompt, plan = [*scaffold.ids, *ids, 5, 6, 7], plan_for(scaffold, [part], "none")
    plain = engine.ask(prompt)
    engine.ask([*scaffold.ids, *ids], capture_plan(scaffold, part), tokens=1)
    wait_for(engine.path(scaffold))
    in_ram = engine.ask(prompt, plan)
    engine.forget_ram()
    gone = engine.ask(prompt, plan)
    folder.unlink()
    assert "fallback" not in in_ram.report and in_ram.report["ram"] == 2
    assert gone.report["fallback"] == "kv-missing" and gone.report["computed"] == 83
    for answer in (in_ram, gone):
        assert answer.tokens == plain.tokens and answer.distance(plain) <= TOLERANCE
    engine.check_integrity()


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
    engine.check_integrity()


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


def test_a_rotation_that_is_not_the_models_is_refused(engine: Engine) -> None:
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT

    right = engine.worker.rotation
    check_rotation(right, _ROPE_DICT.values())
    for wrong in (replace(right, inv_freq=right.inv_freq * 1.01), replace(right, interleaved=True)):
        with pytest.raises(StartError, match="--memory-splice off"):
            check_rotation(wrong, _ROPE_DICT.values())
    with pytest.raises(StartError, match="no rotary embedding"):
        check_rotation(right, [])


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
