"""Quotas: how many cubes and bytes a user may have, and how many requests a second they may send."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from memos_vllm.errors import BadInput, QuotaExceeded, RateLimited
from memos_vllm.governance.identity import checked_user
from memos_vllm.vault import Vault
from memos_vllm.vault.records import Usage

KIND = "quota"
MIB = 2**20

_MAX_BUCKETS = 10_000


class Quota(msgspec.Struct, frozen=True):
    """A user's own limits in the registry; None: the server's default, 0: no limit. rps: requests a second."""

    cubes: int | None = None
    mib: float | None = None
    rps: float | None = None


@dataclass(frozen=True)
class Limits:
    """What holds for one user; None: no limit. cubes and bytes: stored; rps: requests a second."""

    cubes: int | None = None
    bytes: int | None = None
    rps: float | None = None

    def with_own(self, quota: Quota | None) -> "Limits":
        """These limits, with a user's own in their place."""
        if quota is None:
            return self
        cubes = self.cubes if quota.cubes is None else quota.cubes or None
        size = self.bytes if quota.mib is None else int(quota.mib * MIB) or None
        rps = self.rps if quota.rps is None else quota.rps or None
        return Limits(cubes, size, rps)

    def check(self, owner: str, before: Usage, after: Usage) -> None:
        """Raises QuotaExceeded where a write takes its owner over a limit; writes that free room always pass."""
        if self.cubes is not None and after.cubes > max(self.cubes, before.cubes):
            raise QuotaExceeded(
                f"{owner!r} may have {self.cubes} memories, has {before.cubes}, and this would make it {after.cubes}: "
                "delete some, or ask for a higher quota.",
                owner,
            )
        if self.bytes is not None and after.bytes > max(self.bytes, before.bytes):
            raise QuotaExceeded(
                f"{owner!r} may have {_mib(self.bytes)} of memories, has {_mib(before.bytes)}, and this would make it "
                f"{_mib(after.bytes)}: delete some, or ask for a higher quota.",
                owner,
            )


NO_LIMITS = Limits()


class RateLimiter:
    """A token bucket for each user: `rps` tokens a second, one second's worth of them at most. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, user: str, rps: float | None) -> None:
        """Count a request. Raises RateLimited, which says when the next one may come."""
        if rps is None:
            return
        size = max(1.0, rps)
        with self._lock:
            now = self._clock()
            held, since = self._buckets.get(user, (size, now))
            held = min(size, held + (now - since) * rps)
            spent = held >= 1.0
            self._buckets[user] = (held - spent, now)
            if len(self._buckets) > _MAX_BUCKETS:
                self._drop_idle(now)
        if not spent:
            wait = (1.0 - held) / rps
            raise RateLimited(
                f"Too many requests of {user!r}, who may send {rps:g} a second; try again in {math.ceil(wait)} s.", wait
            )

    def _drop_idle(self, now: float) -> None:
        """Forget the buckets that nobody drew from for a minute, or the oldest half where that frees nothing."""
        busy = {user: bucket for user, bucket in self._buckets.items() if now - bucket[1] < 60.0}
        if len(busy) > _MAX_BUCKETS:
            busy = dict(sorted(busy.items(), key=lambda item: item[1][1])[len(busy) // 2 :])
        self._buckets = busy


def put(vault: Vault, user: str, quota: Quota, *, actor: str) -> None:
    """Give a user limits of their own. Raises BadInput."""
    if any(value is not None and not 0 <= value < math.inf for value in (quota.cubes, quota.mib, quota.rps)):
        raise BadInput("A limit is a number from 0 on; 0 means no limit.")
    vault.put_entry(KIND, checked_user(user), quota, actor=actor, owner=user)


def clear(vault: Vault, user: str, *, actor: str) -> bool:
    """Let the server's limits hold for a user again; False where they did."""
    return vault.delete_entry(KIND, user, actor=actor)


def listed(vault: Vault) -> dict[str, Quota]:
    """Every user with limits of their own, in order."""
    return dict(sorted(vault.entries(KIND, Quota).items()))


def _mib(size: int) -> str:
    return f"{size / MIB:.3g} MiB"
