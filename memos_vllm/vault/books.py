"""What the vault keeps books on: usage by owner, which cubes name whom or files of adapters, and which expire when.

All of it follows from the cubes, versions, events and snapshots, and `rebuild` makes it anew from them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from memos_vllm.cube import MemCube
from memos_vllm.vault import adapter_files, keys, pseudonyms
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Damaged, Event, Record, Usage, decode, encode
from memos_vllm.vault.tables import cubes_under, decoded, load, store

CUBE_DATABASES = ("cubes", "versions", "snapshot_cubes")
_ID = slice(-keys.ID_BYTES, None)


def put_cube(txn: Txn, database: str, key: bytes, cube: MemCube) -> None:
    """Store a cube in one of CUBE_DATABASES; its size and that of its files count as its owner's."""
    stored, before = encode(cube, database, key), txn.get(database, key) or b""
    txn.put(database, key, stored)
    files = adapter_files.hold(txn, cube) - adapter_files.let_go(txn, database, key, before)
    size = len(stored) * _weight(database, cube) - (_size(database, key, before) if before else 0)
    _charge(txn, cube.owner, database == "cubes" and not before, size + files)
    mention(txn, cube.id, cube.owner, named_in(cube))


def drop_cube(txn: Txn, database: str, key: bytes, owner: str) -> bool:
    """Remove what `put_cube` stored; False where there was nothing."""
    stored = txn.get(database, key)
    if stored is None:
        return False
    txn.delete(database, key)
    files = adapter_files.let_go(txn, database, key, stored)
    _charge(txn, owner, -(database == "cubes"), -_size(database, key, stored) - files)
    return True


def _weight(database: str, cube: MemCube) -> int:
    """How often a record counts: a present cube once more for each grant, whose holder has index rows of it."""
    return 1 + len(cube.header.access) if database == "cubes" else 1


def _size(database: str, key: bytes, stored: bytes) -> int:
    if database != "cubes":
        return len(stored)
    return len(stored) * _weight(database, decoded(stored, MemCube, database, key))


def usage(txn: Txn, owner: str) -> Usage:
    return load(txn, "statistics", keys.digest(owner), Usage) or Usage()


def covered_usage(txn: Txn, owner: str, covers: Callable[[MemCube], bool]) -> Usage:
    """What those of an owner's cubes take up that are covered: older versions and copies as they were and are."""
    digest, files, size = keys.digest(owner), adapter_files.Count(), 0
    present = {cube.id: (cube, covers(cube)) for cube in cubes_under(txn, "owners", owner)}
    places = [("cubes", keys.cube_key(cube_id)) for cube_id in present]
    places += [("versions", keys.cube_key(cube_id)) for cube_id in present]
    for database, prefix in (*places, ("snapshot_cubes", digest)):
        for key, stored in txn.scan(database, prefix):
            cube = decoded(stored, MemCube, database, key)
            if covers(cube) and present.get(cube.id, (cube, True))[1]:
                size += len(stored) * _weight(database, cube) + files.enter(cube)
    return Usage(sum(covered for _, covered in present.values()), size)


def named_in(cube: MemCube) -> set[str]:
    """Everyone but the owner whom a cube's record names."""
    return {cube.header.author, *cube.readers()} - {cube.owner, ""}


def mention(txn: Txn, cube_id: str, owner: str, names: Iterable[str]) -> None:
    """Note who is named in the rows of a cube, and by a pseudonym who owns it; it outlives the cube, as events do."""
    for name in names:
        txn.put("mentions", keys.of_principal(name, cube_id), pseudonyms.made(txn, owner))


def schedule(txn: Txn, old: MemCube | None, new: MemCube | None) -> None:
    """Let `expiries` follow a change of a cube."""
    before, after = _expiry(old), _expiry(new)
    if before != after:
        if before:
            txn.delete("expiries", before)
        if after:
            txn.put("expiries", after)


def due(txn: Txn, at: str, after: MemCube | None = None) -> Iterator[str]:
    """Ids of the cubes that have to expire, soonest first, those behind `after`. at: in the form of `cube.now`."""
    start = after.header.expires.encode() + keys.cube_key(after.id) if after else b""
    for key, _ in txn.scan("expiries", after=start):
        if key[: -keys.ID_BYTES].decode() > at:
            return
        yield key[_ID].hex()


def rebuild(txn: Txn) -> None:
    """Make all books anew. Raises Damaged."""
    for database in ("statistics", "mentions", "expiries", "adapter_files"):
        for key, _ in list(txn.scan(database)):
            txn.delete(database, key)
    books = _Books(txn)
    for owner, held in books.usage.items():
        store(txn, "statistics", keys.digest(owner), held)
    for key, owner in books.mentions.items():
        txn.put("mentions", key, pseudonyms.made(txn, owner))
    for key in books.expiries:
        txn.put("expiries", key)
    for key, count in books.files.rows.items():
        store(txn, "adapter_files", key, count)


def problems(txn: Txn) -> Iterator[str]:
    """Where the books differ from what they follow from; records that do not decode are left out."""
    books = _Books(txn, strict=False)
    wanted = {keys.digest(owner): held for owner, held in books.usage.items()}
    present = dict(_readable(txn, "statistics", Usage))
    if not books.damaged:
        for key in sorted(wanted.keys() | present.keys()):
            if wanted.get(key) != present.get(key):
                yield f"statistics {key.hex()}: {present.get(key)}, the cubes make {wanted.get(key)}"
        counted = dict(_readable(txn, "adapter_files", int))
        for key in sorted(books.files.rows.keys() | counted.keys()):
            if books.files.rows[key] != counted.get(key):
                yield f"adapter_files {key.hex()}: {counted.get(key)}, the cubes make {books.files.rows[key]}"
    mentions = {key for key, _ in txn.scan("mentions")}
    yield from (f"mentions {key.hex()}: row missing" for key in sorted(books.mentions.keys() - mentions))
    expiries = {key for key, _ in txn.scan("expiries") if key[_ID] not in books.damaged}
    yield from (f"expiries {key.hex()}: row missing" for key in sorted(books.expiries - expiries))
    yield from (f"expiries {key.hex()}: row without a memory" for key in sorted(expiries - books.expiries))


class _Books:
    """The books as they have to be. damaged: ids in records that do not decode; strict: raise Damaged for them."""

    def __init__(self, txn: Txn, *, strict: bool = True) -> None:
        self.mentions: dict[bytes, str] = {}
        self.expiries: set[bytes] = set()
        self.damaged: set[bytes] = set()
        self.files = adapter_files.Count()
        self._cubes: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        self._owners: dict[str, str] = {}
        self._alive: set[str] = set()
        for database in CUBE_DATABASES:
            for key, stored in txn.scan(database):
                try:
                    self._enter(database, decode(stored, MemCube, database, key), len(stored))
                except Damaged:
                    if strict:
                        raise
                    self.damaged.add(key[: keys.ID_BYTES] if database == "versions" else key[_ID])
        for _, event in _readable(txn, "events", Event):
            self._names[event.cube_id].add(event.actor)
        self._close()

    @property
    def usage(self) -> dict[str, Usage]:
        return {owner: Usage(self._cubes[owner], size) for owner, size in self._bytes.items()}

    def _enter(self, database: str, cube: MemCube, size: int) -> None:
        self._bytes[cube.owner] += size * _weight(database, cube) + self.files.enter(cube)
        self._names[cube.id] |= named_in(cube)
        self._owners[cube.id] = cube.owner
        if database == "cubes":
            self._cubes[cube.owner] += 1
            self._alive.add(cube.id)
            if expiry := _expiry(cube):
                self.expiries.add(expiry)

    def _close(self) -> None:
        for cube_id, names in self._names.items():
            owner = self._owners.get(cube_id, "")
            for name in names - {owner if cube_id in self._alive else "", ""}:
                self.mentions[keys.of_principal(name, cube_id)] = owner


def _readable(txn: Txn, database: str, kind: type[Record]) -> Iterator[tuple[bytes, Record]]:
    for key, stored in txn.scan(database):
        try:
            yield key, decode(stored, kind, database, key)
        except Damaged:
            continue


def _charge(txn: Txn, owner: str, cubes: int, size: int) -> None:
    held = usage(txn, owner)
    txn.usage_before.setdefault(owner, held)
    held = Usage(held.cubes + cubes, held.bytes + size)
    if held == Usage():
        txn.delete("statistics", keys.digest(owner))
    else:
        store(txn, "statistics", keys.digest(owner), held)


def _expiry(cube: MemCube | None) -> bytes:
    """Key of a cube's row in `expiries`, b"" where it has none."""
    if cube is None or not cube.header.expires or cube.header.state == "expired":
        return b""
    return cube.header.expires.encode() + keys.cube_key(cube.id)
