"""What every part of the Vault class stands on: the folder, its environment, and whether it may write."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import books, keys
from memos_vllm.vault.env import Environment, Txn
from memos_vllm.vault.records import Usage
from memos_vllm.vault.removals import Step

Result = TypeVar("Result")

SLICE = 1000
"""Rows that one transaction of a long read sees: a write that has to be undone, and a map that grows, wait for it."""

Covers = Callable[[MemCube], bool]
"""Whether somebody may know of a cube; what was another version counts as it was then and as the cube is now."""

STEP = 50
"""Cubes that one transaction of a long removal takes, for which other writes wait."""

QuotaGuard = Callable[[str, Usage, Usage], None]
"""Owner, usage before a transaction, usage after it. What it raises undoes the transaction."""


class Opened:
    """A vault's folder with its LMDB environment."""

    path: Path
    readonly: bool
    quota_guard: QuotaGuard | None = None
    """Asked by every transaction that adds content, where an owner's usage grows; it may be asked twice for one."""
    _env: Environment

    def _writable(self) -> Environment:
        """The environment, for a write. Raises VaultUnavailable."""
        if self.readonly:
            raise VaultUnavailable("The vault is open for reading only.")
        return self._env

    def _sliced(
        self,
        database: str,
        take: Callable[[Txn, bytes, bytes], Result],
        *,
        under: bytes = b"",
        after: bytes = b"",
        rows: int = SLICE,
    ) -> Iterator[Result]:
        """What `take` makes of each row under a prefix, in key order, `rows` of them in one transaction.

        What is written meanwhile may be among them or not.
        """
        while True:
            start = after

            def work(txn: Txn) -> list[tuple[bytes, Result]]:
                found = islice(txn.scan(database, under, after=start), rows)  # noqa: B023
                return [(key, take(txn, key, value)) for key, value in found]

            page = self._env.read(work)
            yield from (taken for _, taken in page)
            if len(page) < rows:
                return
            after = page[-1][0]

    def _ids_of(self, owner: str) -> list[str]:
        """The cubes of an owner, oldest first."""
        return list(self._sliced("owners", lambda _, key, __: key[keys.ID_BYTES :].hex(), under=keys.digest(owner)))

    def _stepwise(self, ids: Sequence[str], work: Callable[[Step, Txn], Result]) -> Iterator[Result]:
        """What `work` answers for STEP ids at a time, each in a transaction of its own; one where there are none, too.

        Between two of them others have as long to write.
        """
        for start in range(0, max(len(ids), 1), STEP):
            began = time.monotonic()
            step = Step(ids[start : start + STEP], first=start == 0, last=start + STEP >= len(ids))
            yield self._change(partial(work, step), frees=True, adds=False)
            if not step.last:
                time.sleep(time.monotonic() - began)

    def _change(
        self, work: Callable[[Txn], Result], *, frees: bool = False, alone: bool = False, adds: bool = True
    ) -> Result:
        """A transaction that changes cubes, under the quotas. Raises what `work` and `quota_guard` raise.

        frees: it makes room; alone: it may take long, so no other write shares its transaction; adds: it may add
        content, for which there has to be room in the quota. `work` may run again.
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
