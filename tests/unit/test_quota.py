"""Quotas: rates by a clock of the test's, room by a real vault, from several threads and processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import MemCube
from memos_vllm.errors import QuotaExceeded, RateLimited
from memos_vllm.governance import quota
from memos_vllm.governance.directory import Directory
from memos_vllm.governance.quota import Limits, Quota, RateLimiter
from memos_vllm.vault import Usage, Vault


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def limited(path: Path, limits: Limits) -> Vault:
    """A vault with these limits for everybody who has none of their own."""
    vault = Vault.open(path)
    directory = Directory(vault, limits)
    directory.refresh()
    vault.quota_guard = directory.check_quota
    return vault


def memory(text: str = "Tea.", owner: str = "maya") -> MemCube:
    return MemCube.plaintext(text, owner=owner)


def test_a_second_of_requests_then_a_wait() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for _ in range(4):
        limiter.take("maya", 4.0)
    with pytest.raises(RateLimited, match="'maya'") as caught:
        limiter.take("maya", 4.0)
    assert caught.value.retry_after == pytest.approx(0.25) and caught.value.status == 429
    limiter.take("bo", 4.0)
    clock.now += 0.25
    limiter.take("maya", 4.0)
    with pytest.raises(RateLimited):
        limiter.take("maya", 4.0)


def test_slow_rates_and_none() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    limiter.take("maya", 0.1)
    with pytest.raises(RateLimited) as caught:
        limiter.take("maya", 0.1)
    assert caught.value.retry_after == pytest.approx(10.0)
    for _ in range(1000):
        limiter.take("maya", None)


def wait_for(limiter: RateLimiter, user: str, rps: float) -> float:
    """Count a request; the seconds to wait where it was refused, else 0."""
    try:
        limiter.take(user, rps)
    except RateLimited as refusal:
        return refusal.retry_after or 0.0
    return 0.0


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 2.0), max_size=80), st.floats(0.5, 20.0))
def test_never_more_than_the_rate_allows(pauses: list[float], rps: float) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    began, passed = clock.now, 0
    for pause in pauses:
        clock.now += pause
        passed += not wait_for(limiter, "maya", rps)
        assert passed <= max(1.0, rps) + (clock.now - began) * rps + 1e-6


def test_waiting_as_told_is_enough() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for _ in range(50):
        if wait := wait_for(limiter, "maya", 3.0):
            clock.now += wait + 1e-9
            limiter.take("maya", 3.0)


def test_a_limiter_forgets_those_who_are_gone() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for number in range(25_000):
        clock.now += 0.001
        limiter.take(f"user-{number}", 1.0)
    assert len(limiter._buckets) <= 10_001
    with pytest.raises(RateLimited):
        limiter.take("user-24999", 1.0)


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        (None, Limits(5, 2 * quota.MIB, 1.0)),
        (Quota(), Limits(5, 2 * quota.MIB, 1.0)),
        (Quota(cubes=9), Limits(9, 2 * quota.MIB, 1.0)),
        (Quota(cubes=0, mib=0, rps=0), Limits()),
        (Quota(mib=0.5, rps=20), Limits(5, quota.MIB // 2, 20)),
    ],
)
def test_own_limits_stand_in_for_the_servers(own: Quota | None, limits: Limits) -> None:
    assert Limits(5, 2 * quota.MIB, 1.0).with_own(own) == limits


def test_a_lowered_quota_lets_nothing_grow_and_all_shrink() -> None:
    limits = Limits(cubes=3)
    limits.check("maya", Usage(5, 10), Usage(5, 20))
    limits.check("maya", Usage(5, 10), Usage(4, 5))
    with pytest.raises(QuotaExceeded):
        limits.check("maya", Usage(5, 10), Usage(6, 20))


def test_memories_up_to_the_quota(tmp_path: Path) -> None:
    with limited(tmp_path / "memory", Limits(cubes=3)) as vault:
        vault.add([memory(), memory()], actor="maya")
        with pytest.raises(QuotaExceeded, match="may have 3 memories, has 2, and this would make it 4") as caught:
            vault.add([memory(), memory()], actor="maya")
        assert caught.value.status == 413
        assert vault.usage("maya").cubes == 2, "all or none"
        (third,) = vault.add([memory()], actor="maya")
        vault.update(third.id, "Milk.", actor="maya")
        vault.add([memory(owner="bo")], actor="bo")
        vault.delete(third.id, actor="maya")
        vault.add([memory()], actor="maya")


def test_bytes_up_to_the_quota(tmp_path: Path) -> None:
    with limited(tmp_path / "memory", Limits(bytes=100_000)) as vault:
        (cube,) = vault.add([memory("x" * 40_000)], actor="maya")
        vault.update(cube.id, "y" * 40_000, actor="maya")
        with pytest.raises(QuotaExceeded, match="MiB"):
            vault.update(cube.id, "z" * 40_000, actor="maya")
        assert vault.get(cube.id).version == 2
        with pytest.raises(QuotaExceeded):
            vault.add([memory("x" * 40_000)], actor="maya")


def test_who_is_over_their_quota_still_ages(tmp_path: Path) -> None:
    """And keeps nobody else from it: a sweep changes memories of several owners in one transaction."""
    with limited(tmp_path / "memory", Limits(bytes=20_000)) as vault:
        vault.quota_guard = None
        full = vault.add([memory("x" * 30_000), memory("y" * 30_000)], actor="maya")
        other = vault.add([memory(owner="bo")], actor="bo")
        vault.quota_guard = Directory(vault, Limits(bytes=20_000)).check_quota
        expired = vault.transition_all([full[0].id, other[0].id], "expired", actor="memos-vllm")
        assert [cube.header.state for cube in expired] == ["expired", "expired"]
        assert vault.transition(full[1].id, "frozen", actor="maya").header.state == "frozen"
        assert vault.prioritise(full[1].id, "pinned").header.priority == "pinned"
        with pytest.raises(QuotaExceeded):
            vault.edit(full[1].id, actor="maya", metadata={"a": "b"})


def test_own_quota_of_a_user(tmp_path: Path) -> None:
    vault = Vault.open(tmp_path / "memory")
    quota.put(vault, "maya", Quota(cubes=1), actor="a")
    vault.close()
    with limited(tmp_path / "memory", Limits(cubes=2)) as vault:
        vault.add([memory()], actor="maya")
        with pytest.raises(QuotaExceeded):
            vault.add([memory()], actor="maya")
        vault.add([memory(owner="bo"), memory(owner="bo")], actor="bo")


def test_threads_do_not_overdraw(tmp_path: Path) -> None:
    with limited(tmp_path / "memory", Limits(cubes=10)) as vault:
        refused: list[QuotaExceeded] = []

        def add_five() -> None:
            for _ in range(5):
                try:
                    vault.add([memory()], actor="maya")
                except QuotaExceeded as error:
                    refused.append(error)

        threads = [threading.Thread(target=add_five) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert vault.usage("maya").cubes == 10 and len(refused) == 20


CHILD = """
import sys
from pathlib import Path
from memos_vllm.errors import QuotaExceeded
from memos_vllm.governance.quota import Limits
from tests.unit.test_quota import limited, memory
with limited(Path(sys.argv[1]), Limits(cubes=20)) as vault:
    for _ in range(15):
        try:
            vault.add([memory()], actor="maya")
        except QuotaExceeded:
            print("refused")
"""


def test_processes_do_not_overdraw(tmp_path: Path) -> None:
    Vault.open(tmp_path / "memory").close()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "memory")]
    root = Path(__file__).resolve().parents[2]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum(output.count("refused") for output in outputs) == 10
    with Vault.open(tmp_path / "memory") as vault:
        assert vault.usage("maya").cubes == 20
