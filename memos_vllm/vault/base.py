"""What every part of the Vault class stands on: the folder, its environment, and whether it may write."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import books
from memos_vllm.vault.env import Environment, Txn
from memos_vllm.vault.records import Usage

Result = TypeVar("Result")

QuotaGuard = Callable[[str, Usage, Usage], None]
"""Owner, usage before a transaction, usage after it. What it raises undoes the transaction."""


class Opened:
    """A vault's folder with its LMDB environment."""

    path: Path
    readonly: bool
    quota_guard: QuotaGuard | None = None
    """Asked by every transaction that adds, and under which an owner's usage grows; it may be asked twice for one."""
    _env: Environment

    def _writable(self) -> Environment:
        """The environment, for a write. Raises VaultUnavailable."""
        if self.readonly:
            raise VaultUnavailable("The vault is open for reading only.")
        return self._env

    def _change(
        self, work: Callable[[Txn], Result], *, frees: bool = False, alone: bool = False, adds: bool = True
    ) -> Result:
        """A transaction that changes cubes, under the quotas. Raises what `work` and `quota_guard` raise.

        frees: it makes room; alone: it may take long, so no other write is to wait for its end; adds: it may bring
        content, else no quota stops it, though a header may grow by a few bytes. `work` may run again.
        """
        guard = self.quota_guard if adds else None

        def guarded(txn: Txn) -> Result:
            txn.usage_before.clear()
            result = work(txn)
            for owner, before in txn.usage_before.items() if guard else ():
                after = books.usage(txn, owner)
                if guard and (after.cubes > before.cubes or after.bytes > before.bytes):
                    guard(owner, before, after)
            return result

        env = self._writable()
        return env.write(guarded, frees=frees) if frees or alone else env.write_together(guarded)
