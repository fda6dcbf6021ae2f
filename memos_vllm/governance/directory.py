"""What the vault's registry says of keys, groups and quotas, ready for every request."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from memos_vllm.errors import VaultUnavailable
from memos_vllm.governance import groups, keys, quota
from memos_vllm.governance.keys import ApiKey
from memos_vllm.governance.quota import NO_LIMITS, Limits, Quota
from memos_vllm.vault import Usage, Vault

MAX_AGE = 0.5
"""Seconds until a change of the registry, such as a revoked key, is seen at the latest."""


@dataclass(frozen=True)
class Rules:
    """The registry at one moment: keys by id, groups by user, quotas by user. revision: of the registry."""

    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    keys_required: bool = False
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    revision: int = -1


class Directory:
    """Rules that follow the registry. `defaults`: limits of users without a quota of their own. Thread-safe."""

    def __init__(self, vault: Vault, defaults: Limits = NO_LIMITS, clock: Callable[[], float] = time.monotonic) -> None:
        self._vault = vault
        self._defaults = defaults
        self._clock = clock
        self._lock = threading.Lock()
        self._read = float("-inf")
        self.rules = Rules()

    def is_stale(self) -> bool:
        """Whether it is time for `refresh`."""
        return self._clock() - self._read > MAX_AGE

    def confirm(self) -> bool:
        """Whether the registry is as it was read, as far as one row tells it at once; then it is not stale any more.

        Where it is not, or the vault would have to be waited for or fails: `refresh`.
        """
        if not self._vault.is_ready or self._lock.locked():
            return False
        began = self._clock()
        try:
            same = self._vault.registry_revision() == self.rules.revision
        except VaultUnavailable:
            return False
        if same:
            self._read = began
        return same

    def refresh(self) -> None:
        """Read the registry where it has changed; blocks. Raises VaultUnavailable."""
        with self._lock:
            if not self.is_stale():
                return
            began = self._clock()
            revision = self._vault.registry_revision()
            if revision != self.rules.revision:
                self.rules = _read(self._vault, revision)
            self._read = began

    def groups_of(self, user: str) -> tuple[str, ...]:
        return self.rules.groups.get(user, ())

    def check_quota(self, owner: str, before: Usage, after: Usage) -> None:
        """What a vault asks before it lets an owner's usage grow, in whichever thread. Raises QuotaExceeded."""
        self.limits_of(owner).check(owner, before, after)

    def limits_of(self, user: str) -> Limits:
        return self._defaults.with_own(self.rules.quotas.get(user))


def _read(vault: Vault, revision: int) -> Rules:
    """The rules of a revision or a later one: what changes while this reads is read again after the next look."""
    memberships: dict[str, list[str]] = {}
    for name, group in groups.listed(vault).items():
        for member in group.members:
            memberships.setdefault(member, []).append(name)
    return Rules(
        keys=vault.entries(keys.KIND, ApiKey),
        keys_required=keys.required(vault),
        groups={user: tuple(names) for user, names in memberships.items()},
        quotas=vault.entries(quota.KIND, Quota),
        revision=revision,
    )
