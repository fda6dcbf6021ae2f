"""Vault: the durable, versioned store of cubes and of the KV manifest."""

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, Self

import msgspec

from memos_vllm.cube import MemCube, Priority, Scalar, checked_id, completed, now
from memos_vllm.errors import BadInput, Conflict, NotFound, VaultUnavailable
from memos_vllm.vault import folder, manifest, tables
from memos_vllm.vault.check import problems_in
from memos_vllm.vault.env import Environment, Txn, acquire, release
from memos_vllm.vault.records import Event, KVRecord, Uses

log = logging.getLogger(__name__)

UpdateOperation = Literal["overwrite", "append", "merge"]
START_MAP_BYTES = 64 << 20

# `Vault.list` hides the builtin from annotations in the class body.
Cubes = list[MemCube]
Events = list[Event]
KVKeys = list[str]
KVRecords = list[KVRecord]
Problems = list[str]


class Vault:
    """Cubes of all owners in one folder. Safe for several threads and processes; not across a fork.

    Every method that changes something is one transaction and on disk when it returns. All methods may raise
    VaultUnavailable; those that write, VaultFull, and then nothing was stored.
    """

    def __init__(self, path: Path, env: Environment, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self._env = env
        self._released = False
        self._known: tuple[int, frozenset[str]] | None = None

    @classmethod
    def open(
        cls, path: Path, *, readonly: bool = False, map_bytes: int = START_MAP_BYTES, max_bytes: int | None = None
    ) -> Self:
        """The vault in the memory directory `path`; a missing or empty one becomes a new vault.

        map_bytes: size of the LMDB map at the start; it doubles by itself. max_bytes: its limit, None for the disk's.
        Where this process has the same vault open already, both share one map and the first caller's sizes hold.
        Raises NotAVault, VaultUnwritable, StartError.
        """
        path = Path(path).absolute()
        folder.prepare(path, readonly=readonly)
        env = acquire(path / folder.VAULT, readonly=readonly, map_bytes=map_bytes, max_bytes=max_bytes)
        vault = cls(path, env, readonly=readonly)
        if not readonly:
            vault._bury()
        return vault

    def add(self, cubes: Iterable[MemCube], *, actor: str) -> Cubes:
        """Store new cubes, all or none, and return them as stored (version 1). Raises BadInput, TooLarge, Conflict."""
        added = [_as_new(cube, actor) for cube in cubes]

        def work(txn: Txn) -> None:
            for cube in added:
                tables.insert(txn, cube, actor)
            tables.bump(txn, _readers(added))

        if added:
            self._writable().write(work)
        return added

    def get(self, cube_id: str, *, version: int | None = None) -> MemCube:
        """The newest version, or the one asked for. Raises NotFound."""
        if version is None:
            return self._env.read(lambda txn: tables.newest(txn, cube_id))
        return self._env.read(lambda txn: tables.version_of(txn, cube_id, version))

    def update(
        self,
        cube_id: str,
        text: str,
        *,
        actor: str,
        operation: UpdateOperation = "overwrite",
        metadata: Mapping[str, Scalar] | None = None,
    ) -> MemCube:
        """Store and return the next version of a cube; K/V of another text go with it.

        operation: `overwrite` the text; `append` a line; `merge` the lines that it lacks.
        metadata: these keys replace those of the same name. Raises NotFound, BadInput, TooLarge, Conflict.
        """

        def work(txn: Txn) -> MemCube:
            old = tables.newest(txn, cube_id)
            new = _next_version(old, text, actor, operation, metadata or {})
            tables.replace(txn, old, new, actor)
            manifest.supersede(txn, new, same_text=old.payload == new.payload)
            tables.bump(txn, new.readers())
            return new

        updated = self._writable().write(work)
        self._bury()
        return updated

    def prioritise(self, cube_id: str, priority: Priority) -> MemCube:
        """Give a cube another priority, without a new version; its K/V are pinned with it. Raises NotFound."""

        def work(txn: Txn) -> MemCube:
            old = tables.newest(txn, cube_id)
            cube = MemCube(msgspec.structs.replace(old.header, priority=priority), old.payload)
            if cube != old:
                tables.rewrite(txn, cube)
                manifest.pin(txn, cube)
                tables.bump(txn, cube.readers())
            return cube

        return self._writable().write(work)

    def delete(self, cube_id: str, *, actor: str) -> KVKeys:
        """Remove a cube: texts, versions, index rows, manifest rows and KV files; an event without text stays.

        Returns the KV keys that are gone, for caches that hold their K/V. Raises NotFound.
        """
        return self._delete(lambda txn: ([tables.newest(txn, cube_id)], []), actor)[1]

    def delete_owner(self, owner: str, *, actor: str) -> tuple[int, KVKeys]:
        """Remove every cube of an owner, as `delete` does, and all other K/V made for them.

        Returns the number of cubes and the KV keys that are gone.
        """

        def find(txn: Txn) -> tuple[Cubes, KVRecords]:
            return list(tables.cubes_under(txn, "owners", owner)), manifest.pieces_of(txn, owner)

        return self._delete(find, actor)

    def list(self, owner: str, *, limit: int | None = None, after: str = "") -> Cubes:
        """Newest versions of an owner's cubes, oldest cube first; `after` is the last id of the page before."""
        if after:
            checked_id(after)
        return self._env.read(lambda txn: list(islice(tables.cubes_under(txn, "owners", owner, after=after), limit)))

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

    def history(self, cube_id: str) -> Events:
        """Every change of a cube, oldest first. Raises NotFound for an id that was never stored."""

        def work(txn: Txn) -> Events:
            events = tables.events_of(txn, cube_id)
            if not events:
                raise NotFound(f"There is no memory {cube_id[:64]!r}.")
            texts = tables.texts_of(txn, cube_id)
            return [_with_texts(event, texts) for event in events]

        return self._env.read(work)

    def put_kv(self, record: KVRecord) -> None:
        """Commit KV files that lie at their path already to the manifest.

        They are pinned where their cube is. Raises NotFound where the cube is gone or has a newer version (unlink the
        files then), Conflict where it has another owner or the file is missing, BadInput where the path leaves `kv/`.
        """
        _check_path(record.path)

        def work(txn: Txn) -> None:
            pinned = record.pinned
            if record.cube_id:
                cube = tables.newest(txn, record.cube_id)
                _check_cube(cube, record)
                pinned = manifest.is_pinned(cube)
            if not (self.path / record.path).exists():
                raise Conflict(f"There is no KV file {record.path}; write it first.")
            manifest.put(txn, msgspec.structs.replace(record, pinned=pinned))

        self._writable().write(work)

    def get_kv(self, key: str) -> KVRecord | None:
        return self._env.read(lambda txn: manifest.row(txn, key))

    def kv_of(self, cube_id: str) -> KVRecords:
        """Manifest rows of a cube, whichever its version."""
        return self._env.read(lambda txn: manifest.rows_of(txn, checked_id(cube_id)))

    def drop_kv(self, key: str) -> KVRecord | None:
        """Remove a manifest row and its KV file; returns the row, or None where there was none."""

        def work(txn: Txn) -> KVRecord | None:
            record = manifest.row(txn, key)
            if record is not None:
                manifest.doom(txn, record)
            return record

        dropped = self._writable().write(work, frees=True)
        self._bury()
        return dropped

    def iter_kv(self) -> KVRecords:
        """The whole manifest."""
        return self._env.read(manifest.rows)

    def known_keys(self) -> frozenset[str]:
        """Every KV key of the manifest; read anew only when it has changed."""
        changes = self._env.read(manifest.changes)
        known = self._known
        if known is None or known[0] != changes:
            known = self._known = (changes, frozenset(record.key for record in self.iter_kv()))
        return known[1]

    def pinned_keys(self) -> set[str]:
        """KV keys of pinned cubes. Reads them alone, so it may be asked for often."""
        return self._env.read(manifest.pinned)

    def prune_kv(self) -> KVRecords:
        """Remove the rows whose file is gone, evicted from disk or lost, and return them."""

        def work(txn: Txn) -> KVRecords:
            rows = (manifest.row(txn, key) for key in lost)
            gone = [row for row in rows if row is not None and not (self.path / row.path).exists()]
            manifest.doom_all(txn, gone)
            return gone

        lost = [record.key for record in self.iter_kv() if not (self.path / record.path).exists()]
        gone = self._writable().write(work, frees=True) if lost else []
        self._bury()
        return gone

    def add_uses(self, counts: Mapping[str, int], at: float) -> None:
        """Count uses of cubes by id at a time (Unix seconds), in one transaction; cubes that are gone are left out."""

        def work(txn: Txn) -> None:
            for cube_id, count in counts.items():
                tables.put_uses(txn, cube_id, tables.uses_of(txn, cube_id).more(count, at))

        self._writable().write(work)

    def uses_of(self, cube_ids: Iterable[str]) -> dict[str, Uses]:
        """The stored uses of cubes, by id."""
        ids = [*cube_ids]
        return self._env.read(lambda txn: {cube_id: tables.uses_of(txn, checked_id(cube_id)) for cube_id in ids})

    def check(self) -> Problems:
        """Every fault of the vault, one line each; empty when it is sound. Writers wait until it is done.

        Opened for reading only it lets them write, and looks at records but not at pages.
        Pages of the data file, then each record's checksum, index rows against cubes, manifest against cubes and files.
        """
        if self.readonly:
            return self._env.read(lambda txn: problems_in(txn, self.path))
        return self._env.write(lambda txn: self._env.problems() or problems_in(txn, self.path))

    def stats(self) -> dict[str, int]:
        """Numbers of rows, and bytes of KV files, pages in use and map (`max_bytes` 0: no limit)."""

        def work(txn: Txn) -> dict[str, int]:
            counts = {name: txn.count(name) for name in ("cubes", "versions", "events", "kv")}
            return {**counts, "kv_bytes": manifest.total_bytes(txn)}

        return {**self._env.read(work), **self._env.sizes()}

    def close(self) -> None:
        if not self._released:
            self._released = True
            release(self._env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writable(self) -> Environment:
        if self.readonly:
            raise VaultUnavailable("The vault is open for reading only.")
        return self._env

    def _delete(self, find: Callable[[Txn], tuple[Cubes, KVRecords]], actor: str) -> tuple[int, KVKeys]:
        def work(txn: Txn) -> tuple[int, KVKeys]:
            cubes, records = find(txn)
            for cube in cubes:
                records += manifest.rows_of(txn, cube.id)
                tables.remove(txn, cube, actor)
            tables.bump(txn, _readers(cubes))
            return len(cubes), manifest.doom_all(txn, records)

        deleted = self._writable().write(work, frees=True)
        self._bury()
        return deleted

    def _bury(self) -> None:
        """Unlink the KV files of removed rows, inside the transaction that forgets them: `put_kv` cannot interleave."""

        def work(txn: Txn) -> None:
            for record in manifest.rows(txn, "doomed"):
                if all(map(_unlinked, folder.kv_files(self.path, record))):
                    manifest.forget(txn, record)

        if self._env.read(lambda txn: txn.count("doomed")):
            self._env.write(work, frees=True)


def _unlinked(file: Path) -> bool:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.error("cannot remove KV file %s (%s); tried again at the next start", file, error.strerror)
        return False
    return True


def _as_new(cube: MemCube, actor: str) -> MemCube:
    if not cube.owner:
        raise BadInput("A memory needs an owner.")
    header = msgspec.structs.replace(cube.header, version=1, operation="add", author=actor)
    return completed(MemCube(header, cube.payload))


def _next_version(
    old: MemCube, text: str, actor: str, operation: UpdateOperation, metadata: Mapping[str, Scalar]
) -> MemCube:
    if old.header.state == "frozen":
        raise Conflict(f"Memory {old.id} is frozen: its content cannot change.")
    header = msgspec.structs.replace(
        old.header,
        updated=max(now(), old.header.updated),
        metadata={**old.header.metadata, **metadata},
        version=old.version + 1,
        operation=operation,
        author=actor,
    )
    payload = msgspec.structs.replace(old.plain(), content=_combined(old.text, text, operation))
    return completed(MemCube(header, payload))


def _combined(old: str, new: str, operation: UpdateOperation) -> str:
    match operation:
        case "overwrite":
            return new
        case "append":
            return f"{old}\n{new}"
        case "merge":
            held = {line.strip().casefold() for line in old.splitlines()}
            return "\n".join([old, *(line for line in new.splitlines() if line.strip().casefold() not in held)])
    raise BadInput(f"An update overwrites, appends or merges; {operation!r} is unknown.")


def _readers(cubes: Iterable[MemCube]) -> set[str]:
    return {principal for cube in cubes for principal in cube.readers()}


def _with_texts(event: Event, texts: Mapping[int, str]) -> Event:
    if event.operation == "delete":
        return event
    return msgspec.structs.replace(event, old_text=texts.get(event.version - 1), new_text=texts.get(event.version))


def _check_cube(cube: MemCube, record: KVRecord) -> None:
    if cube.version != record.cube_version:
        raise NotFound(f"Memory {cube.id} is at version {cube.version}; build its K/V again.")
    if cube.owner != record.owner:
        raise Conflict(f"Memory {cube.id} belongs to another owner than its K/V.")


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] != folder.KV or ".." in parts:
        raise BadInput(f"The path of a KV file lies under {folder.KV}/, not at {path!r}.")
