"""Is the audit log whole? It is followed from its first entry on, each hash against the entry and the one before.

Names are compared with the pseudonyms that the chain covers. What it cannot show: that a name is missing because
somebody removed it and not because the person was forgotten.

A part of the log is read in one transaction, so that whoever writes does not wait for all of it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.vault import pseudonyms
from memos_vllm.vault.audit import HASH_BYTES, MAX_DIGITS, NOTHING, AuditLog, hash_of, head_of, number_key, row_of
from memos_vllm.vault.base import SLICE
from memos_vllm.vault.env import Txn

_MAX_DIGITS = 19
"""Numbers of entries have fewer; those of 19 digits may not fit their eight bytes."""

Result = TypeVar("Result")


class Read(Protocol):
    """Runs a work in a transaction: `Environment.read`, or one that is open."""

    def __call__(self, work: Callable[[Txn], Result]) -> Result: ...


def problems(read: Read, anchor: str = "") -> Iterator[str]:
    """What is wrong with the log and its index: entries changed, missing, moved, or cut off at the end.

    anchor: `seq:hash` of a head that was noted elsewhere; the log must still contain it. Raises BadInput.
    """
    chain = _Chain()
    while not chain.ended:
        yield from read(chain.follow)
    after: bytes | None = b""
    while after is not None:
        found, after = read(partial(pseudonyms.problems, after=after, rows=SLICE))
        yield from found
    yield from read(lambda txn: list(_anchored(txn, anchor)))


class VerifiedLog(AuditLog):
    """The part of a vault that keeps its audit log and can show that nobody else changed it."""

    def verify_log(self, anchor: str = "") -> list[str]:
        """Every fault of the audit log, one line each. anchor: an earlier `log_head`. Raises BadInput."""
        return list(problems(self._env.read, anchor))


class _Chain:
    """The log as far as it was followed. ended: all of it was."""

    def __init__(self) -> None:
        self.ended = False
        self._previous, self._expected = NOTHING, 1
        self._owned, self._readable = 0, True

    def follow(self, txn: Txn) -> list[str]:
        """What is wrong with the next SLICE entries, and where they are the last ones, with the whole."""
        rows = list(islice(txn.scan("audit", after=number_key(self._expected - 1)), SLICE))
        found = [problem for key, stored in rows for problem in self._entry(txn, key, stored)]
        self.ended = len(rows) < SLICE
        return [*found, *self._end(txn)] if self.ended else found

    def _entry(self, txn: Txn, key: bytes, stored: bytes) -> Iterator[str]:
        seq = int.from_bytes(key)
        if seq != self._expected:
            yield f"audit {_missing(self._expected, seq)}"
            self._previous = b""
        yield from (f"audit entry {seq}: {fault}" for fault in _faults(seq, stored, self._previous))
        self._previous, self._expected = stored[:HASH_BYTES], seq + 1
        try:
            owner = row_of(seq, stored).owner
        except VaultUnavailable:
            self._readable = False
            return
        self._owned += bool(owner)
        if owner and txn.get("audit_owners", owner + key) is None:
            yield f"audit_owners: no row for entry {seq}"

    def _end(self, txn: Txn) -> Iterator[str]:
        head, last = head_of(txn), self._expected - 1
        if last < head.seq:
            yield f"audit {_missing(last + 1, head.seq + 1)}, cut off at the end"
        elif (last, self._previous) != (head.seq, head.hash):
            yield f"audit head: says entry {head.seq}, the last one is {last} or another"
        rows = txn.count("audit_owners")
        if self._readable and rows > self._owned:
            yield f"audit_owners: {rows - self._owned} rows without an entry"


def _missing(first: int, stop: int) -> str:
    return f"entry {first}: missing" if stop - first == 1 else f"entries {first} to {stop - 1}: missing"


def _faults(seq: int, stored: bytes, previous: bytes) -> Iterator[str]:
    """previous: hash of the entry before it, b"" where that is unknown."""
    body = stored[HASH_BYTES:]
    if stored[:HASH_BYTES] != hash_of(body):
        yield "changed, its hash differs"
        return
    try:
        row = row_of(seq, stored)
    except VaultUnavailable:
        yield "is none of this format"
        return
    if row.seq != seq:
        yield f"moved, it was written as entry {row.seq}"
    elif previous and row.previous != previous:
        yield "does not follow the entry before it"


def _anchored(txn: Txn, anchor: str) -> Iterator[str]:
    if not anchor:
        return
    number, _, digest = anchor.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS and len(digest) == 2 * HASH_BYTES):
        raise BadInput("An anchor of the audit log is `seq:hash`, as `memos-vllm vault log --head` prints it.")
    stored = txn.get("audit", number_key(int(number))) if int(number) else NOTHING
    if stored is None or stored[:HASH_BYTES].hex() != digest:
        yield f"audit entry {number}: differs from the anchor, the log was written anew"
