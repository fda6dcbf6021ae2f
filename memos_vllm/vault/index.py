"""The inverted index that search reads, written in the transaction that changes the cubes. Layout: see `postings`."""

import unicodedata
from collections.abc import Iterable, Iterator

import Stemmer

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn
from memos_vllm.vault.postings import (
    FORMAT,
    NUMBER,
    ORDINAL,
    PARTITION,
    Partition,
    Reading,
    is_searched,
    reading_of,
)
from memos_vllm.vault.records import Damaged, decode
from memos_vllm.vault.words import spoken_text

EMBEDDER = b"index embedder"
"""The row of `meta` that says whose vectors there are; without it there are none."""
_NEXT, _FORMAT = b"index partitions", b"index format"


def insert(txn: Txn, cube: MemCube) -> None:
    """Make a cube findable by everyone who may read it; nothing where it is already, or where search leaves it out."""
    replace(txn, None, cube)


def remove(txn: Txn, cube: MemCube) -> None:
    """Take a cube out, as it was inserted; nothing where it is not in the index."""
    replace(txn, cube, None)


def replace(txn: Txn, old: MemCube | None, new: MemCube | None) -> None:
    """`old`, as it was inserted, gives its place to `new`, the same cube; only rows that differ are written."""
    _replace_rows(txn, old, new)
    _renew_vector(txn, old if old and is_searched(old) else None, new if new and is_searched(new) else None)


def drop(txn: Txn, principal: str) -> int:
    """Remove everything that a principal finds; returns the number of rows. The cubes and their vectors stay."""
    partition = partition_of(txn, principal)
    if partition is None:
        return 0
    prefix = NUMBER.pack(partition.number)
    gone = txn.delete_under("terms", prefix) + txn.delete_under("entries", prefix)
    return gone + txn.delete("partitions", keys.digest(principal))


def rows_of(txn: Txn, principal: str) -> int:
    """Index rows that belong to a principal."""
    partition = partition_of(txn, principal)
    if partition is None:
        return 0
    prefix = NUMBER.pack(partition.number)
    return 1 + sum(1 for database in ("terms", "entries") for _ in txn.scan(database, prefix))


def partition_of(txn: Txn, principal: str) -> Partition | None:
    """None where a principal finds nothing. Raises VaultUnavailable."""
    stored = txn.get("partitions", keys.digest(principal))
    if stored is None:
        return None
    if len(stored) != PARTITION.size:
        raise VaultUnavailable("The search index is damaged; run `memos-vllm vault reindex`.")
    return Partition(*PARTITION.unpack(stored))


def finds(txn: Txn, principal: str) -> bool:
    """Whether there is anything that a principal may read."""
    partition = partition_of(txn, principal)
    return partition is not None and partition.cubes > 0


def is_current(txn: Txn) -> bool:
    """Whether the index has this version's layout and words; if not, `rebuild` it."""
    return txn.get("meta", _FORMAT) == _format()


def rebuild(txn: Txn) -> int:
    """Make the index anew from the cubes, and return how many are in it. Vectors of unchanged cubes stay."""
    for database in ("partitions", "entries", "terms"):
        txn.clear(database)
    txn.put("meta", _FORMAT, _format())
    searched = set()
    for cube in _cubes(txn):
        if is_searched(cube):
            _replace_rows(txn, None, cube)
            searched.add(keys.cube_key(cube.id))
    _rebuild_queue(txn, searched)
    return len(searched)


def problems(txn: Txn) -> Iterator[str]:
    """One line for each difference between the index and one made anew; cubes that do not decode are left out."""
    if not is_current(txn):
        yield "index: of another version; run `memos-vllm vault reindex`"
        return
    check = _Check(txn)
    for key, stored in txn.scan("cubes"):
        try:
            yield from check.cube(decode(stored, MemCube, "cubes", key))
        except Damaged:
            check.complete = False
    yield from check.totals()


class _Check:
    """Looks for the rows that each cube calls for, and counts them, to find those that none does."""

    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self._embeds = txn.get("meta", EMBEDDER) is not None
        self._wanted: dict[str, Partition] = {}
        self._terms = 0
        self._awaited = 0
        self.complete = True

    def cube(self, cube: MemCube) -> Iterator[str]:
        if not is_searched(cube):
            return
        reading = reading_of(cube)
        for principal in cube.readers():
            wanted = self._wanted.get(principal, Partition(0, 0, 0, 0))
            self._wanted[principal] = _counted(wanted, None, reading)
            self._terms += len(reading.terms)
            if not self._holds(principal, reading):
                yield f"index: the rows of memory {cube.id} for {principal!r} are missing or differ"
        key = keys.cube_key(cube.id)
        embedded = self._txn.get("vectors", key) is not None
        awaits = self._txn.get("unembedded", key) is not None
        self._awaited += embedded + awaits
        if self._embeds and not (embedded or awaits):
            yield f"index: memory {cube.id} has no vector and awaits none"

    def _holds(self, principal: str, reading: Reading) -> bool:
        partition = partition_of(self._txn, principal)
        ordinal = partition and _ordinal_of(self._txn, partition, reading)
        if partition is None or ordinal is None:
            return False
        return self._txn.has_dup("entries", NUMBER.pack(partition.number), reading.entry.packed(ordinal)) and all(
            self._txn.has_dup("terms", term, posting) for term, posting in reading.postings(partition.number, ordinal)
        )

    def totals(self) -> Iterator[str]:
        for principal, wanted in self._wanted.items():
            partition = partition_of(self._txn, principal)
            if partition and partition[1:3] != wanted[1:3]:
                yield f"index: the statistics of {principal!r} are {partition[1:3]}, not {wanted[1:3]}"
        entries = sum(partition.cubes for partition in self._wanted.values())
        wanted_rows = {"partitions": len(self._wanted), "entries": entries, "terms": self._terms}
        for database, rows in wanted_rows.items():
            if self.complete and self._txn.count(database) != rows:
                yield f"index: {self._txn.count(database)} rows in {database}, not {rows}"
        vectors = self._txn.count("vectors") + self._txn.count("unembedded")
        if self.complete and vectors != self._awaited:
            yield f"index: {vectors} rows in vectors and unembedded, not {self._awaited}"


def _format() -> bytes:
    """The layout, and what makes words of a text: another stemmer or Unicode makes others."""
    return NUMBER.pack(FORMAT) + f"{Stemmer.version()} {unicodedata.unidata_version}".encode()


def _cubes(txn: Txn) -> Iterator[MemCube]:
    for key, stored in txn.scan("cubes"):
        try:
            yield decode(stored, MemCube, "cubes", key)
        except Damaged as error:
            raise VaultUnavailable(f"Record {key.hex()} in cubes is damaged ({error}); restore a backup.") from error


def _reading(cube: MemCube | None) -> Reading | None:
    return reading_of(cube) if cube is not None and is_searched(cube) else None


def _same(old: MemCube, new: MemCube) -> bool:
    """Whether both read the same, but for who may read them."""
    return old == new or (old.payload == new.payload and _read_fields(old) == _read_fields(new))


def _read_fields(cube: MemCube) -> Iterable[object]:
    header = cube.header
    times = (header.created, header.updated, header.happened, header.expires)
    kinds = (header.semantic_type, header.tags, header.sensitivity, header.metadata, header.fingerprint)
    return header.owner, header.source, header.state, times, kinds


def _replace_rows(txn: Txn, old: MemCube | None, new: MemCube | None) -> None:
    before = _reading(old)
    after = before if old is not None and new is not None and _same(old, new) else _reading(new)
    left = set(old.readers()) if old and before else set()
    entered = set(new.readers()) if new and after else set()
    for principal in left | entered:
        _change(txn, principal, before if principal in left else None, after if principal in entered else None)


def _change(txn: Txn, principal: str, before: Reading | None, after: Reading | None) -> None:
    if before is after:
        return
    partition = partition_of(txn, principal)
    if partition is None:
        if after is None:
            return
        partition = _new_partition(txn)
    ordinal = _ordinal_of(txn, partition, before or after)
    if ordinal is not None and before is None:
        return
    if ordinal is None:
        before, ordinal = None, partition.ordinal
    _write(txn, partition, ordinal, before, after)
    changed = _counted(partition, before, after)
    if changed.cubes:
        txn.put("partitions", keys.digest(principal), PARTITION.pack(*changed))
    else:
        txn.delete("partitions", keys.digest(principal))


def _write(txn: Txn, partition: Partition, ordinal: int, before: Reading | None, after: Reading | None) -> None:
    """The rows of one cube, those that differ."""
    key = NUMBER.pack(partition.number)
    held = set(before.postings(partition.number, ordinal)) if before else set()
    wanted = set(after.postings(partition.number, ordinal)) if after else set()
    for term, posting in sorted(held - wanted):
        txn.delete_dup("terms", term, posting)
    txn.put_dups("terms", sorted(wanted - held))
    if before and (after is None or before.entry != after.entry):
        txn.delete_dup("entries", key, before.entry.packed(ordinal))
    if after and (before is None or before.entry != after.entry):
        txn.put_dups("entries", [(key, after.entry.packed(ordinal))])


def _counted(partition: Partition, before: Reading | None, after: Reading | None) -> Partition:
    return Partition(
        partition.number,
        partition.cubes + (after is not None) - (before is not None),
        partition.words + (after.entry.words if after else 0) - (before.entry.words if before else 0),
        partition.ordinal + (before is None and after is not None),
    )


def _ordinal_of(txn: Txn, partition: Partition, reading: Reading | None) -> int | None:
    place = reading.entry.place if reading else b""
    row = txn.find_dup("entries", NUMBER.pack(partition.number), place) if place else None
    return None if row is None else int.from_bytes(row[ORDINAL])


def _new_partition(txn: Txn) -> Partition:
    """With a number that no partition had before."""
    number = int.from_bytes(txn.get("meta", _NEXT) or b"")
    txn.put("meta", _NEXT, NUMBER.pack(number + 1))
    return Partition(number, 0, 0, 0)


def _renew_vector(txn: Txn, old: MemCube | None, new: MemCube | None) -> None:
    """A changed text loses its vector and awaits another, where there is an embedder."""
    if old and new and spoken_text(old) == spoken_text(new):
        return
    for cube in filter(None, (old, new)):
        key = keys.cube_key(cube.id)
        txn.delete("vectors", key)
        txn.delete("unembedded", key)
    if new and txn.get("meta", EMBEDDER):
        txn.put("unembedded", keys.cube_key(new.id))


def _rebuild_queue(txn: Txn, searched: set[bytes]) -> None:
    """Vectors of what is no longer searched go; what is searched and has none awaits one."""
    embedded = {key for key, _ in txn.scan("vectors")}
    for key in sorted(embedded - searched):
        txn.delete("vectors", key)
    txn.clear("unembedded")
    if txn.get("meta", EMBEDDER):
        for key in sorted(searched - embedded):
            txn.put("unembedded", key)
