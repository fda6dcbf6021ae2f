"""Vault: the durable, versioned store of cubes and of the KV manifest."""

import logging
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Self

from memos_vllm.cube import MemCube, Namespace, State, checked_id
from memos_vllm.errors import MemosError, NotFound
from memos_vllm.vault import (
    books,
    changes,
    folder,
    keys,
    manifest,
    migrations,
    provenance,
    removals,
    tables,
    versions,
)
from memos_vllm.vault.backup import Keeper
from memos_vllm.vault.base import SLICE, Covers
from memos_vllm.vault.chain import VerifiedLog
from memos_vllm.vault.check import Tell, file_problems, problems_in, row_problems
from memos_vllm.vault.editing import Editing
from memos_vllm.vault.env import Environment, Txn, acquire, release
from memos_vllm.vault.forgetting import Forgetting
from memos_vllm.vault.lora import Adapters
from memos_vllm.vault.pipeline import Pipelines
from memos_vllm.vault.provenance import Ancestor
from memos_vllm.vault.records import Event, Usage
from memos_vllm.vault.registry import Registry
from memos_vllm.vault.search import Searchable
from memos_vllm.vault.snapshots import TimeMachine

log = logging.getLogger(__name__)

START_MAP_BYTES = 64 << 20
_COUNTED = ("cubes", "versions", "events", "snapshots", "unembedded", "kv", "adapters")

# `Vault.list` hides the builtin from annotations in the class body.
Ancestors = list[Ancestor]
Cubes = list[MemCube]
Events = list[Event]
Problems = list[str]


class Vault(Editing, TimeMachine, Pipelines, Forgetting, Adapters, VerifiedLog, Registry, Searchable, Keeper):
    """Cubes of all owners in one folder. Safe for several threads and processes; not across a fork.

    Every method that changes something is on disk when it returns, and one transaction but for `delete_owner` and
    `forget`. All methods may raise VaultUnavailable; those that write, VaultFull, and then nothing was stored.
    `actor` is who does it, for the history and the audit log; whether they may is the caller's question.
    """

    def __init__(self, path: Path, env: Environment, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._env = env
        self._released = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        readonly: bool = False,
        create: bool = True,
        map_bytes: int = START_MAP_BYTES,
        max_bytes: int | None = None,
    ) -> Self:
        """The vault in the memory directory `path`; a missing or empty one becomes a new vault, if it may.

        create: whether it may; readonly never does.
        map_bytes: size of the LMDB map at the start; it doubles by itself. max_bytes: its limit, None for the disk's.
        Where this process has the same vault open already, both share one map and the first caller's sizes hold.
        Raises NotAVault, VaultUnwritable, StartError.
        """
        path = Path(path).absolute()
        folder.prepare(path, readonly=readonly, create=create and not readonly)
        env = acquire(path / folder.VAULT, readonly=readonly, map_bytes=map_bytes, max_bytes=max_bytes)
        vault = cls(path, env, readonly=readonly)
        if not readonly:
            migrations.refresh(env)
            vault._bury()
            vault.sweep_adapters()
            vault._finish_removals()
        return vault

    def add(self, cubes: Iterable[MemCube], *, actor: str) -> Cubes:
        """Store new cubes, all or none, and return them as stored (version 1). Raises BadInput, TooLarge, Conflict."""
        added = [versions.first(cube, actor) for cube in cubes]

        def work(txn: Txn) -> None:
            for cube in added:
                changes.add(txn, cube, actor)

        if added:
            self._change(work)
        return added

    def get(self, cube_id: str, *, version: int | None = None) -> MemCube:
        """The newest version, or the one asked for. Raises NotFound."""
        if version is None:
            return self._env.read(lambda txn: tables.newest(txn, cube_id))
        return self._env.read(lambda txn: tables.version_of(txn, cube_id, version))

    def versions(self, cube_id: str) -> Cubes:
        """Every version that is kept, oldest first. Raises NotFound."""
        return self._env.read(lambda txn: tables.versions_of(txn, tables.newest(txn, cube_id)))

    def list(
        self,
        owner: str,
        *,
        limit: int | None = None,
        after: str = "",
        namespace: Namespace | None = None,
        states: Collection[State] | None = None,
    ) -> Cubes:
        """Newest versions of an owner's cubes, oldest cube first; `after` is the last id of the page before.

        Long lists are not of one moment.
        """
        start = keys.of_principal(owner, checked_id(after)) if after else b""

        def wanted(cube: MemCube) -> bool:
            return namespace in (None, cube.header.namespace) and (states is None or cube.header.state in states)

        rows = SLICE if limit is None else max(1, min(limit, SLICE))
        cubes = self._sliced("owners", tables.cube_named, under=keys.digest(owner), after=start, rows=rows)
        return list(islice(filter(wanted, cubes), limit))

    def walk(self, *, after: str = "", limit: int) -> Cubes:
        """Newest versions of the cubes of all owners, in id order; `after` is the last id of the page before."""
        start = keys.cube_key(checked_id(after)) if after else b""
        return self._env.read(lambda txn: list(islice(tables.all_cubes(txn, start), limit)))

    def due(self, at: str, *, limit: int, after: MemCube | None = None) -> Cubes:
        """Cubes whose time to expire has come but whose state does not say so yet, soonest first.

        at: a time in the form of `cube.now`; after: the last cube of the page before.
        """

        def work(txn: Txn) -> Cubes:
            return [tables.newest(txn, cube_id) for cube_id in islice(books.due(txn, at, after), limit)]

        return self._env.read(work)

    def readable(self, principal: str) -> Cubes:
        """Newest versions of the cubes that a principal owns or was granted, oldest cube first."""

        def work(txn: Txn) -> Cubes:
            owned = tables.cubes_under(txn, "owners", principal)
            granted = tables.cubes_under(txn, "grants", principal)
            return sorted([*owned, *granted], key=lambda cube: cube.id)

        return self._env.read(work)

    def revision(self, principal: str) -> int:
        """A number that grows with every write that may change `readable(principal)`."""
        return self._env.read(lambda txn: tables.revision(txn, principal))

    def usage(self, owner: str, *, covers: Covers | None = None) -> Usage:
        """What an owner's cubes take up. covers: those that count, which are read then."""
        if covers is None:
            return self._env.read(lambda txn: books.usage(txn, owner))
        return self._env.read(lambda txn: books.covered_usage(txn, owner, covers))

    def history(self, cube_id: str) -> Events:
        """Every change of a cube, oldest first. Raises NotFound for an id that was never stored."""

        def work(txn: Txn) -> Events:
            events = tables.events_of(txn, cube_id)
            if not events:
                raise NotFound(f"There is no memory {cube_id[:64]!r}.")
            return tables.with_texts(txn, events)

        return self._env.read(work)

    def provenance(self, cube_id: str, *, limit: int = provenance.LIMIT) -> Ancestors:
        """What a cube derives from, nearest first, itself included; at most `limit` versions. Raises NotFound.

        Ancestors may belong to others: show only those that the reader of this list may read.
        """
        return self._env.read(lambda txn: list(islice(provenance.ancestors(txn, cube_id), limit)))

    def check(self, tell: Tell = str) -> Problems:
        """Every fault of the vault, one line each; empty when it is sound. Writers wait until it is done.

        Opened for reading only it lets them write, and looks at records but not at pages. tell: see `problems_in`.
        Pages of the data file, then each record's checksum, index rows against cubes, manifest against cubes and files,
        files of adapters against their digests.
        """
        if self.readonly:
            found = self._env.read(lambda txn: row_problems(txn, tell))
            files = self._env.read(lambda txn: file_problems(txn, self.path))
            still = set(self._env.read(lambda txn: file_problems(txn, self.path))) if files else set()
            return [*found, *(line for line in files if line in still)]
        return self._env.write(lambda txn: self._env.problems() or problems_in(txn, self.path, tell))

    def stats(self) -> dict[str, int]:
        """Numbers of rows, and bytes of KV files, pages in use and map (`max_bytes` 0: no limit)."""

        def work(txn: Txn) -> dict[str, int]:
            counts = {name: txn.count(name) for name in _COUNTED}
            return {**counts, "kv_bytes": manifest.total_bytes(txn)}

        return {**self._env.read(work), **self._env.sizes()}

    def _finish_removals(self) -> None:
        """Go on with what ended on the way. What fails stays as it is until the vault is opened again."""
        try:
            for removal in self._env.read(removals.under_way):
                if removal.whole:
                    self.forget(removal.owner, actor=removal.actor)
                else:
                    self._empty(removal)
        except MemosError as error:
            log.warning("A removal that was cut short is not finished: %s", error)

    def close(self) -> None:
        if not self._released:
            self._released = True
            release(self._env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
