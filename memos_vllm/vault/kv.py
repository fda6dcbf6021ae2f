"""The part of a vault that keeps the KV manifest, removes KV files, and counts how often cubes are used."""

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import msgspec

from memos_vllm.cube import MemCube, checked_id
from memos_vllm.errors import BadInput, Conflict, MemosError, NotFound
from memos_vllm.vault import adapter_files, folder, forgotten, keys, manifest, tables
from memos_vllm.vault.base import Opened
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import KVRecord, Uses

log = logging.getLogger(__name__)

_BURIED = 64
"""Rows whose files one transaction unlinks, while other writes wait."""


class KVManifest(Opened):
    """Which K/V lie in which file, and what they are worth."""

    _known: tuple[int, frozenset[str]] | None = None

    def put_kv(self, record: KVRecord, *, since: float | None = None) -> None:
        """Commit KV files that lie at their path already to the manifest.

        They are pinned where their cube is. since: when they were asked for (Unix seconds), for those of no cube.
        Raises NotFound where the cube is gone or has a newer version, Forgotten where the owner was forgotten since
        (unlink the files then), Conflict where it has another owner or the file is missing, BadInput where the path
        leaves `kv/`.
        """
        _check_path(record.path)

        def work(txn: Txn) -> None:
            pinned = record.pinned
            if record.cube_id:
                cube = tables.newest(txn, record.cube_id)
                _check_cube(cube, record)
                pinned = manifest.is_pinned(cube)
            elif record.owner and since is not None:
                forgotten.check(txn, record.owner, since)
            if not (self.path / record.path).exists():
                raise Conflict(f"There is no KV file {record.path}; write it first.")
            manifest.put(txn, msgspec.structs.replace(record, pinned=pinned))

        self._writable().write(work)

    def get_kv(self, key: str) -> KVRecord | None:
        return self._env.read(lambda txn: manifest.row(txn, key))

    def kv_of(self, cube_id: str) -> list[KVRecord]:
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

    def iter_kv(self) -> list[KVRecord]:
        """The whole manifest; what changes while it is read may be missing."""

        def row(_: Txn, key: bytes, stored: bytes) -> KVRecord:
            return tables.decoded(stored, KVRecord, "kv", key)

        return list(self._sliced("kv", row))

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

    def prune_kv(self) -> list[KVRecord]:
        """Remove the rows whose file is gone, evicted from disk or lost, and return them."""

        def work(txn: Txn) -> list[KVRecord]:
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

    def take_use(self, cube_id: str, most: int, at: float) -> bool:
        """Count a use of a cube at a time (Unix seconds), if there were fewer than `most`; whether it was counted."""

        def work(txn: Txn) -> bool:
            held = tables.uses_of(txn, checked_id(cube_id))
            if held.count >= most or tables.find(txn, cube_id) is None:
                return False
            tables.put_uses(txn, cube_id, held.more(1, at))
            return True

        return self._writable().write_together(work)

    def uses_of(self, cube_ids: Iterable[str]) -> dict[str, Uses]:
        """The stored uses of cubes, by id."""
        ids = [*cube_ids]
        return self._env.read(lambda txn: {cube_id: tables.uses_of(txn, checked_id(cube_id)) for cube_id in ids})

    def _bury(self) -> None:
        """Unlink the files of removed rows, inside the transactions that forget them: none can name them meanwhile.

        The removal of the rows is on disk already: what fails here is logged, and tried again at the next chance.
        """

        def work(rows: list[KVRecord], txn: Txn) -> None:
            for record in rows:
                stored = txn.get("doomed", keys.digest(record.key)) is not None
                if stored and all(map(_unlinked, folder.kv_files(self.path, record))):
                    manifest.forget(txn, record)

        try:
            doomed = self._env.read(lambda txn: manifest.rows(txn, "doomed") if txn.count("doomed") else [])
            for first in range(0, len(doomed), _BURIED):
                self._env.write(partial(work, doomed[first : first + _BURIED]), frees=True)
            if self._env.read(lambda txn: txn.count("adapter_doomed")):
                self._env.write(lambda txn: adapter_files.bury(txn, self.path), frees=True)
        except MemosError as error:
            log.error("files of removed rows stay for now: %s", error)


def _unlinked(file: Path) -> bool:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.error("cannot remove KV file %s (%s); tried again at the next start", file, error.strerror)
        return False
    return True


def _check_cube(cube: MemCube, record: KVRecord) -> None:
    if cube.version != record.cube_version:
        raise NotFound(f"Memory {cube.id} is at version {cube.version}; build its K/V again.")
    if cube.owner != record.owner:
        raise Conflict(f"Memory {cube.id} belongs to another owner than its K/V.")


def _check_path(path: str) -> None:
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or parts[0] != folder.KV or ".." in parts:
        raise BadInput(f"The path of a KV file lies under {folder.KV}/, not at {path!r}.")
