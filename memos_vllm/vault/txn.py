"""One transaction, as the rest of the vault sees it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import lmdb

from memos_vllm.vault.records import Usage

RawTxn: TypeAlias = "lmdb.Transaction[bytes]"


class Txn:
    """One transaction over the named databases. Keys and values are bytes."""

    def __init__(self, txn: RawTxn, databases: dict[str, "lmdb._Database"]) -> None:
        self._txn = txn
        self._databases = databases
        self.usage_before: dict[str, Usage] = {}
        """Of the owners whose usage this transaction has changed."""
        self.writes = 0
        """Grows with every change of a row."""

    def get(self, database: str, key: bytes) -> bytes | None:
        return self._txn.get(key, db=self._databases[database])

    def put(self, database: str, key: bytes, value: bytes = b"") -> None:
        self.writes += 1
        self._txn.put(key, value, db=self._databases[database])

    def delete(self, database: str, key: bytes) -> bool:
        self.writes += 1
        return self._txn.delete(key, db=self._databases[database])

    def scan(self, database: str, prefix: bytes = b"", after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows under a prefix in key order, those up to `after` left out. Do not write to it meanwhile."""
        with self._txn.cursor(db=self._databases[database]) as cursor:
            if not cursor.set_range(max(prefix, after)):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                if key != after:
                    yield key, value

    def scan_back(self, database: str, prefix: bytes, before: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows under a prefix in falling key order, from the last one below `before`. Do not write to it meanwhile."""
        with self._txn.cursor(db=self._databases[database]) as cursor:
            if not (cursor.prev() if cursor.set_range(before) else cursor.last()):
                return
            for key, value in cursor.iterprev():
                if not key.startswith(prefix):
                    return
                yield key, value

    def put_dups(self, database: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Add rows to a database with several values under a key; sorted rows are the fastest."""
        self.writes += 1
        with self._txn.cursor(db=self._databases[database]) as cursor:
            cursor.putmulti(rows)

    def append(self, database: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Fill an empty database with sorted rows; its pages are left full."""
        self.writes += 1
        with self._txn.cursor(db=self._databases[database]) as cursor:
            cursor.putmulti(rows, append=True)

    def delete_dup(self, database: str, key: bytes, value: bytes) -> bool:
        """Remove one of the values under a key."""
        self.writes += 1
        return self._txn.delete(key, value, db=self._databases[database])

    def has_dup(self, database: str, key: bytes, value: bytes) -> bool:
        with self._txn.cursor(db=self._databases[database]) as cursor:
            return cursor.set_key_dup(key, value)

    def find_dup(self, database: str, key: bytes, prefix: bytes) -> bytes | None:
        """The first of the values under a key that begins so."""
        with self._txn.cursor(db=self._databases[database]) as cursor:
            found = cursor.value() if cursor.set_range_dup(key, prefix) else b""
        return found if found.startswith(prefix) else None

    def dups(self, database: str, key: bytes, value_bytes: int) -> memoryview:
        """All values under a key, sorted, each with the key before it, in one buffer; `value_bytes` is their size."""
        with self._txn.cursor(db=self._databases[database]) as cursor:
            return cursor.getmulti([key], dupdata=True, dupfixed_bytes=value_bytes, keyfixed=True)

    def get_many(self, database: str, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """The rows that exist under these keys."""
        with self._txn.cursor(db=self._databases[database]) as cursor:
            return cursor.getmulti(keys)

    def delete_under(self, database: str, prefix: bytes) -> int:
        """Remove every row under a prefix and return how many there were."""
        self.writes += 1
        gone = 0
        with self._txn.cursor(db=self._databases[database]) as cursor:
            while cursor.set_range(prefix) and cursor.key().startswith(prefix):
                gone += cursor.count()
                cursor.delete(dupdata=True)
        return gone

    def clear(self, database: str) -> None:
        """Remove every row."""
        self.writes += 1
        self._txn.drop(self._databases[database], delete=False)

    def count(self, database: str) -> int:
        return self._txn.stat(self._databases[database])["entries"]
