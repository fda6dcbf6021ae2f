"""Consistency of a vault: every record decodes, and tables, index, books, log, manifest and files agree.

Records are read one by one and their rows looked up; names and ids of all memories are held in memory meanwhile. Rows
too many are looked for one by one only where the numbers of rows do not add up.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import adapter_files, adapters, books, chain, index, keys, registry, snapshots
from memos_vllm.vault.env import Txn
from memos_vllm.vault.folder import SPARE, kv_files, ranks_of
from memos_vllm.vault.records import Damaged, Event, KVRecord, Record, Snapshot, Uses, decode

STRAY_SECONDS = 600  # a younger KV file may be on its way into the manifest

Tell = Callable[[str], object]


def problems_in(txn: Txn, memory_dir: Path, tell: Tell = str) -> list[str]:
    """One line for each fault, empty when all is sound. tell: is called with the name of each part as it begins."""
    return [*row_problems(txn, tell), *file_problems(txn, memory_dir)]


def row_problems(txn: Txn, tell: Tell = str) -> list[str]:
    """Faults of rows. tell: see `problems_in`."""
    found: list[str] = []
    cubes = _Cubes(txn)
    parts: dict[str, Callable[[], Iterable[str]]] = {
        "memories": cubes.run,
        "manifest": _Manifest(txn).run,
        "adapters": lambda: adapters.problems(txn),
        "registry": lambda: registry.problems(txn),
        "audit log": lambda: chain.problems(lambda work: work(txn)),
        "snapshots": lambda: snapshots.problems(txn),
        "books": lambda: books.problems(txn),
        "index": lambda: index.problems(txn),
    }
    for name, part in parts.items():
        if name in ("books", "index") and cubes.damaged:
            continue  # they follow from the memories, which cannot all be read
        tell(name)
        try:
            found.extend(part())
        except VaultUnavailable as error:
            found.append(f"{name}: {error}")
    return found


def file_problems(txn: Txn, memory_dir: Path) -> list[str]:
    """Files that differ from their row of the manifest, or have none; one that was evicted or lost is no fault.

    A server that works on them meanwhile makes and removes files between its transactions: look twice.
    """
    records = [record for _, record in _decodable(txn, "kv", KVRecord)]
    doomed = [record for _, record in _decodable(txn, "doomed", KVRecord)]
    found = [line for record in records for line in _file(memory_dir, record)]
    found += [f"{row.path}: to be removed with its memory, but still there" for row in doomed]
    known = {record.key for record in (*records, *doomed)}
    named = {memory_dir / record.path for record in (*records, *doomed)}
    youngest = time.time() - STRAY_SECONDS
    for path in sorted((memory_dir / "kv").rglob("*")):
        stray = path not in named and path.name.partition(".")[0] not in known
        if stray and path.is_file() and path.stat().st_mtime < youngest:
            found.append(f"{path.relative_to(memory_dir)}: file without a manifest row, left by a crash; remove it")
    found += adapter_files.problems(txn, memory_dir)
    if (memory_dir / SPARE).exists():
        found.append(f"{SPARE}: left by a compaction that was killed; stop the server, start it and check again")
    return found


def _file(memory_dir: Path, record: KVRecord) -> Iterator[str]:
    """Whether the files of a row, where all of them are there, have its size."""
    files = kv_files(memory_dir, record)
    size = sum(file.stat().st_size for file in files)
    if len(files) == ranks_of(record) and size != record.bytes:
        yield f"{record.path}: {size} bytes, kv {record.key} says {record.bytes}"


class _Cubes:
    """The tables of memories. damaged: ids of those that do not decode."""

    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self.damaged: set[bytes] = set()
        self._wanted: Counter[str] = Counter()
        self._revised: set[str] = set()

    def run(self) -> Iterator[str]:
        for key, stored in self._txn.scan("cubes"):
            try:
                cube = decode(stored, MemCube, "cubes", key)
            except Damaged as damage:
                self.damaged.add(key)
                yield f"cubes {key.hex()}: {damage}"
                continue
            yield from self._cube(key, cube)
        yield from _damages(self._txn, "versions", MemCube)
        yield from _damages(self._txn, "snapshots", Snapshot)
        yield from _damages(self._txn, "snapshot_cubes", MemCube)
        yield from _damages(self._txn, "uses", Uses)
        yield from _damages(self._txn, "revisions", int)
        for database, lost in (
            ("owners", "row without a memory"),
            ("grants", "row without a memory"),
            ("versions", "version without a memory"),
        ):
            if self.damaged or self._txn.count(database) != self._wanted[database]:
                yield from self._extra(database, lost)
        yield from self._events()
        yield from self._uses()

    def _cube(self, key: bytes, cube: MemCube) -> Iterator[str]:
        if cube.id != key.hex():
            yield f"cubes {key.hex()}: holds memory {cube.id}"
        yield from self._present("owners", [keys.of_principal(cube.owner, cube.id)])
        yield from self._present("grants", [keys.of_principal(g.principal, cube.id) for g in cube.header.access])
        first = self._first_version(cube)
        yield from self._present("versions", [keys.numbered(cube.id, n) for n in range(first, cube.version)])
        events = [keys.numbered(cube.id, n) for n in range(1, cube.version + 1)]
        yield from (f"events {row.hex()}: event missing" for row in events if self._txn.get("events", row) is None)
        for principal in set(cube.readers()) - self._revised:
            self._revised.add(principal)
            if self._txn.get("revisions", keys.digest(principal)) is None:
                yield f"revisions: no row for {principal!r}"

    def _present(self, database: str, rows: list[bytes]) -> Iterator[str]:
        missing = [row for row in rows if self._txn.get(database, row) is None]
        self._wanted[database] += len(rows) - len(missing)
        what = "version missing" if database == "versions" else "row missing"
        yield from (f"{database} {row.hex()}: {what}" for row in missing)

    def _first_version(self, cube: MemCube) -> int:
        """Purifying a cube removes the versions before; one that came back behind its delete begins there."""
        if cube.version == 1:
            return 1
        events = [event for _, event in _decodable(self._txn, "events", Event, keys.cube_key(cube.id))]
        purified = (event.version for event in events if event.how == "purify")
        deleted = (event.version + 2 for event in events if event.operation == "delete")
        return max(*purified, *deleted, 1, 1)

    def _extra(self, database: str, what: str) -> Iterator[str]:
        """Rows which no memory calls for."""
        for key, _ in self._txn.scan(database):
            cube_key = key[: keys.ID_BYTES] if database == "versions" else key[keys.ID_BYTES :]
            if cube_key not in self.damaged and not self._called_for(database, key, cube_key):
                yield f"{database} {key.hex()}: {what}"

    def _called_for(self, database: str, key: bytes, cube_key: bytes) -> bool:
        stored = self._txn.get("cubes", cube_key)
        if stored is None:
            return False
        cube = decode(stored, MemCube, "cubes", cube_key)
        if database == "versions":
            return self._first_version(cube) <= keys.split_numbered(key)[1] < cube.version
        named = [cube.owner] if database == "owners" else [grant.principal for grant in cube.header.access]
        return key[: keys.ID_BYTES] in map(keys.digest, named)

    def _events(self) -> Iterator[str]:
        """Only a deleted cube has a delete event, and what has events was not lost."""
        last: tuple[str, bool] = ("", True)
        for key, stored in self._txn.scan("events"):
            cube_id = keys.split_numbered(key)[0]
            if cube_id != last[0]:
                yield from self._fate(*last)
            try:
                event = decode(stored, Event, "events", key)
            except Damaged as damage:
                yield f"events {key.hex()}: {damage}"
                continue
            last = cube_id, event.operation == "delete"
        yield from self._fate(*last)

    def _fate(self, cube_id: str, deleted: bool) -> Iterator[str]:
        present = not cube_id or self._txn.get("cubes", keys.cube_key(cube_id)) is not None
        if present and cube_id and deleted:
            yield f"cubes {cube_id}: present although deleted"
        if not present and not deleted:
            yield f"cubes {cube_id}: memory missing, it was never deleted"

    def _uses(self) -> Iterator[str]:
        lost = (key for key, _ in self._txn.scan("uses") if self._txn.get("cubes", key) is None)
        yield from (f"uses {key.hex()}: row without a memory" for key in lost)


class _Manifest:
    """The KV manifest and its index."""

    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self._kv: dict[bytes, KVRecord] = {}

    def run(self) -> Iterator[str]:
        self._kv = dict(_decodable(self._txn, "kv", KVRecord))
        for database in ("kv", "doomed"):
            yield from _damages(self._txn, database, KVRecord)
        yield from self._rows()
        yield from self._index()

    def _rows(self) -> Iterator[str]:
        for key, record in self._kv.items():
            if key != keys.digest(record.key):
                yield f"kv {record.key}: lies under another key"
            stored = self._txn.get("cubes", keys.cube_key(record.cube_id)) if record.cube_id else b""
            if stored is None:
                yield f"kv {record.key}: its memory {record.cube_id} is missing"
            elif stored:
                yield from self._cube_of(record, stored)

    def _cube_of(self, record: KVRecord, stored: bytes) -> Iterator[str]:
        try:
            cube = decode(stored, MemCube, "cubes", keys.cube_key(record.cube_id))
        except Damaged:
            return
        if cube.owner != record.owner or not 1 <= record.cube_version <= cube.version:
            yield f"kv {record.key}: owner or version differs from memory {cube.id}"

    def _index(self) -> Iterator[str]:
        wanted = {keys.of_cube(record.cube_id, record.key) for record in self._kv.values() if record.cube_id}
        pieces = (record for record in self._kv.values() if record.owner and not record.cube_id)
        wanted |= {keys.pieces_of(record.owner) + keys.digest(record.key) for record in pieces}
        present = {key for key, _ in self._txn.scan("kv_cubes")}
        yield from (f"kv_cubes {key.hex()}: row missing" for key in sorted(wanted - present))
        unreadable = {key for key, _ in self._txn.scan("kv")} - set(self._kv)
        extra = (key for key in sorted(present - wanted) if key[keys.ID_BYTES :] not in unreadable)
        yield from (f"kv_cubes {key.hex()}: row without a manifest row" for key in extra)
        pinned = {key for key, record in self._kv.items() if record.pinned}
        pins = {key for key, _ in self._txn.scan("pins")} - unreadable
        yield from (f"pins {key.hex()}: differs from its manifest row" for key in sorted(pinned ^ pins))


def _decodable(txn: Txn, database: str, kind: type[Record], prefix: bytes = b"") -> Iterator[tuple[bytes, Record]]:
    """Rows whose record decodes."""
    for key, stored in txn.scan(database, prefix):
        try:
            yield key, decode(stored, kind, database, key)
        except Damaged:
            continue


def _damages(txn: Txn, database: str, kind: type[Record]) -> Iterator[str]:
    """A line for each record that does not decode."""
    for key, stored in txn.scan(database):
        try:
            decode(stored, kind, database, key)
        except Damaged as damage:
            yield f"{database} {key.hex()}: {damage}"
