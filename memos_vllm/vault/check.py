"""Consistency of a vault: every record decodes, and the tables, the manifest and the KV files agree."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from memos_vllm.cube import MemCube
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.folder import kv_files
from memos_vllm.vault.records import Damaged, Event, KVRecord, Record, Uses, decode

STRAY_SECONDS = 600  # a younger KV file may be on its way into the manifest


def problems_in(txn: Txn, memory_dir: Path) -> list[str]:
    """One line for each fault, empty when all is sound."""
    return list(_Check(txn, memory_dir).run())


class _Check:
    def __init__(self, txn: Txn, memory_dir: Path) -> None:
        self._txn = txn
        self._dir = memory_dir
        self._cubes: dict[str, MemCube] = {}
        self._damaged: set[str] = set()
        self._kv: dict[bytes, KVRecord] = {}
        self._found: list[str] = []

    def run(self) -> Iterator[str]:
        self._cubes = {key.hex(): cube for key, cube in self._records("cubes", MemCube)}
        self._damaged = {key.hex() for key, _ in self._txn.scan("cubes")} - set(self._cubes)
        self._kv = dict(self._records("kv", KVRecord))
        doomed = dict(self._records("doomed", KVRecord))
        parts = (self._ids, self._index, self._versions, self._events, self._revisions, self._manifest, self._uses)
        for part in parts:
            self._found.extend(part())
        self._found.extend(self._files([*self._kv.values(), *doomed.values()]))
        yield from self._found
        yield from (f"{row.path}: to be removed with its memory, but still there" for row in doomed.values())

    def _records(self, database: str, kind: type[Record]) -> Iterator[tuple[bytes, Record]]:
        """Records that decode; the others are noted."""
        for key, stored in self._txn.scan(database):
            try:
                yield key, decode(stored, kind, database, key)
            except Damaged as damage:
                self._found.append(f"{database} {key.hex()}: {damage}")

    def _ids(self) -> Iterator[str]:
        for cube_id, cube in self._cubes.items():
            if cube.id != cube_id:
                yield f"cubes {cube_id}: holds memory {cube.id}"

    def _index(self) -> Iterator[str]:
        """`owners` and `grants` hold the rows which the cubes call for, and no others."""
        owners = {keys.of_principal(cube.owner, cube.id) for cube in self._cubes.values()}
        grants = {
            keys.of_principal(grant.principal, cube.id) for cube in self._cubes.values() for grant in cube.header.access
        }
        yield from self._compare("owners", owners)
        yield from self._compare("grants", grants)

    def _compare(self, database: str, wanted: set[bytes]) -> Iterator[str]:
        present = {key for key, _ in self._txn.scan(database) if key[keys.ID_BYTES :].hex() not in self._damaged}
        yield from (f"{database} {key.hex()}: row missing" for key in sorted(wanted - present))
        yield from (f"{database} {key.hex()}: row without a memory" for key in sorted(present - wanted))

    def _versions(self) -> Iterator[str]:
        """Each cube has all its versions below the newest; nothing else has any."""
        wanted = {keys.numbered(cube.id, n) for cube in self._cubes.values() for n in range(1, cube.version)}
        present = {key for key, _ in self._txn.scan("versions") if key[: keys.ID_BYTES].hex() not in self._damaged}
        for _ in self._records("versions", MemCube):
            pass
        yield from (f"versions {key.hex()}: version missing" for key in sorted(wanted - present))
        yield from (f"versions {key.hex()}: version without a memory" for key in sorted(present - wanted))

    def _events(self) -> Iterator[str]:
        """Event n of a cube made version n; only a deleted cube has a delete event."""
        wanted = {keys.numbered(cube.id, n) for cube in self._cubes.values() for n in range(1, cube.version + 1)}
        present = {key for key, _ in self._txn.scan("events")}
        yield from (f"events {key.hex()}: event missing" for key in sorted(wanted - present))
        deleted = {event.cube_id for _, event in self._records("events", Event) if event.operation == "delete"}
        lost = {keys.split_numbered(key)[0] for key in present} - deleted - set(self._cubes) - self._damaged
        yield from (f"cubes {cube_id}: present although deleted" for cube_id in sorted(deleted & set(self._cubes)))
        yield from (f"cubes {cube_id}: memory missing, it was never deleted" for cube_id in sorted(lost))

    def _revisions(self) -> Iterator[str]:
        present = {key for key, _ in self._records("revisions", int)}
        principals = {principal for cube in self._cubes.values() for principal in cube.readers()}
        missing = (principal for principal in sorted(principals) if keys.digest(principal) not in present)
        yield from (f"revisions: no row for {principal!r}" for principal in missing)

    def _manifest(self) -> Iterator[str]:
        for key, record in self._kv.items():
            cube = self._cubes.get(record.cube_id)
            if record.cube_id and cube is None and record.cube_id not in self._damaged:
                yield f"kv {record.key}: its memory {record.cube_id} is missing"
            if cube is not None and (cube.owner != record.owner or not 1 <= record.cube_version <= cube.version):
                yield f"kv {record.key}: owner or version differs from memory {cube.id}"
            if key != keys.digest(record.key):
                yield f"kv {record.key}: lies under another key"
        wanted = {keys.of_cube(record.cube_id, record.key) for record in self._kv.values() if record.cube_id}
        pieces = (record for record in self._kv.values() if record.owner and not record.cube_id)
        wanted |= {keys.pieces_of(record.owner) + keys.digest(record.key) for record in pieces}
        present = {key for key, _ in self._txn.scan("kv_cubes")}
        yield from (f"kv_cubes {key.hex()}: row missing" for key in sorted(wanted - present))
        unreadable = {key for key, _ in self._txn.scan("kv")} - set(self._kv)
        extra = (key for key in sorted(present - wanted) if key[keys.ID_BYTES :] not in unreadable)
        yield from (f"kv_cubes {key.hex()}: row without a manifest row" for key in extra)
        yield from self._pins(unreadable)

    def _pins(self, unreadable: set[bytes]) -> Iterator[str]:
        wanted = {key for key, record in self._kv.items() if record.pinned}
        present = {key for key, _ in self._txn.scan("pins")} - unreadable
        yield from (f"pins {key.hex()}: differs from its manifest row" for key in sorted(wanted ^ present))

    def _uses(self) -> Iterator[str]:
        present = {key.hex() for key, _ in self._records("uses", Uses)}
        lost = present - set(self._cubes) - self._damaged
        yield from (f"uses {cube_id}: row without a memory" for cube_id in sorted(lost))

    def _files(self, known: Iterable[KVRecord]) -> Iterator[str]:
        """Manifest rows have their file, of their size; files have a manifest row."""
        for record in self._kv.values():
            files = kv_files(self._dir, record)
            size = sum(file.stat().st_size for file in files)
            if self._dir / record.path not in files:
                yield f"{record.path}: file missing, kv {record.key} names it"
            elif size != record.bytes:
                yield f"{record.path}: {size} bytes, kv {record.key} says {record.bytes}"
        named = {file for record in known for file in kv_files(self._dir, record)}
        youngest = time.time() - STRAY_SECONDS
        for path in sorted((self._dir / "kv").rglob("*")):
            if path.is_file() and path not in named and path.stat().st_mtime < youngest:
                yield f"{path.relative_to(self._dir)}: file without a manifest row, left by a crash; remove it"
