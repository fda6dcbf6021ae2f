"""The audit log: who did what to which cube, when. Append-only, chained by hashes, and free of names.

    audit          seq                      8          entry: BLAKE2b-256 of the body (32 bytes), body (msgpack)
    audit_owners   pseudonym + seq          16 + 8     entries about what one principal owns
    meta           "audit"                             number, hash and time of the newest entry

The body holds the hash of the entry before it. Names stand in it as `pseudonyms`: with a principal's rows there their
name is gone from the log, and the chain stays as it was. The chain shows what was changed, removed or moved; a log that
was written anew from its first entry on is told by a hash kept elsewhere.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from memos_vllm.cube import Scalar, is_id, now
from memos_vllm.errors import BadInput, VaultUnavailable
from memos_vllm.vault import forgotten, pseudonyms
from memos_vllm.vault.base import SLICE, Covers, Opened
from memos_vllm.vault.env import Txn
from memos_vllm.vault.tables import find

HEAD = b"audit"
NOTHING = bytes(32)
MAX_DETAIL_CHARS = 128
HASH_BYTES = 32
_NOBODY = bytes(pseudonyms.BYTES)
"""No name's hash."""
MAX_DIGITS = 18
"""Of an entry's number: more may not fit its eight bytes."""


class Row(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it is stored. Bytes are pseudonyms; `thing` is that of a target which is no cube."""

    seq: int
    at: str
    actor: bytes
    action: str
    cube_id: str
    thing: bytes
    owner: bytes
    principals: tuple[bytes, ...]
    detail: dict[str, Scalar]
    previous: bytes


class Head(msgspec.Struct, frozen=True):
    """Number, hash and time of the newest entry."""

    seq: int = 0
    hash: bytes = NOTHING
    at: str = ""

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the log. A name that was forgotten reads `forgotten:` and the beginning of its pseudonym."""

    seq: int
    at: str
    actor: str
    action: str
    target: str
    owner: str
    principals: tuple[str, ...]
    detail: dict[str, Scalar]
    hash: str


class LogQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries are wanted; "" and 0 mean any. Times are in the form of `cube.now`, `until` is left out.

    after, before: numbers of entries, both left out; with `newest_first` the page goes down from `before`.
    """

    actor: str = ""
    owner: str = ""
    target: str = ""
    action: str = ""
    since: str = ""
    until: str = ""
    after: int = 0
    before: int = 0
    limit: int = 100
    newest_first: bool = False


class Noted(NamedTuple):
    """An entry to add; see `append`."""

    actor: str
    action: str
    target: str = ""
    owner: str = ""
    principals: tuple[str, ...] = ()
    detail: Mapping[str, Scalar] = MappingProxyType({})


def append(
    txn: Txn,
    *,
    actor: str,
    action: str,
    target: str = "",
    owner: str = "",
    principals: Iterable[str] = (),
    detail: Mapping[str, Scalar] | None = None,
) -> None:
    """Add an entry, in the transaction of what it tells about.

    actor: who did it; owner: whose cube or entry it was done to; principals: the others it concerns (grantees, a new
    owner); target: a cube id, or a name within the owner's things (a snapshot, a key).
    detail: short facts, never content and never a name: it outlives a forgotten principal.
    """
    head = head_of(txn)
    detail = dict(detail or {})
    if any(isinstance(value, str) and len(value) > MAX_DETAIL_CHARS for value in detail.values()):
        raise BadInput(f"A detail of an audit entry has at most {MAX_DETAIL_CHARS} characters: it is no content.")
    row = Row(
        seq=head.seq + 1,
        at=max(now(), head.at),
        actor=pseudonyms.made(txn, actor),
        action=action,
        cube_id=target if is_id(target) else "",
        thing=b"" if is_id(target) else pseudonyms.made(txn, target, of=owner),
        owner=pseudonyms.made(txn, owner),
        principals=tuple(pseudonyms.made(txn, name) for name in principals),
        detail=detail,
        previous=head.hash,
    )
    body = msgspec.msgpack.encode(row)
    digest = hash_of(body)
    txn.put("audit", number_key(row.seq), digest + body)
    if row.owner:
        txn.put("audit_owners", row.owner + number_key(row.seq))
    txn.put("meta", HEAD, msgspec.msgpack.encode(Head(row.seq, digest, row.at)))


def head_of(txn: Txn) -> Head:
    """The newest entry's number, hash and time. Raises VaultUnavailable."""
    stored = txn.get("meta", HEAD)
    try:
        return Head() if stored is None else msgspec.msgpack.decode(stored, type=Head)
    except msgspec.MsgspecError as error:
        raise VaultUnavailable("The head of the audit log is damaged; restore a backup.") from error


def query(txn: Txn, wanted: LogQuery, covers: Covers | None = None) -> tuple[list[LogEntry], LogQuery | None]:
    """Entries asked for, and what is left to ask for after SLICE rows. Raises BadInput, VaultUnavailable for damage."""
    if wanted.limit < 1:
        raise BadInput("A log query asks for 1 entry or more.")
    matches = _matcher(txn, wanted)
    if matches is None:
        return [], None
    found: list[LogEntry] = []
    last, looked_at = 0, 0
    for row, digest in islice(_candidates(txn, wanted), SLICE):
        last, looked_at = row.seq, looked_at + 1
        if matches(row) and (covers is None or _is_covered(txn, row, covers)):
            entry = _entry(txn, row, digest)
            found.append(entry if covers is None or row.cube_id else msgspec.structs.replace(entry, detail={}))
            if len(found) == wanted.limit:
                return found, None
    if looked_at < SLICE:
        return found, None
    place = {"before" if wanted.newest_first else "after": last}
    return found, msgspec.structs.replace(wanted, limit=wanted.limit - len(found), **place)


class AuditLog(Opened):
    """The part of a vault that reads its audit log and adds to it."""

    def log(self, wanted: LogQuery | None = None, *, covers: Covers | None = None) -> list[LogEntry]:
        """Entries of the audit log, oldest first where the query does not say otherwise. Raises BadInput.

        covers: the cubes that it may tell of; neither those that are gone nor how many there are of any are then told.
        """
        rest: LogQuery | None = wanted or LogQuery()
        found: list[LogEntry] = []
        while rest is not None:
            entries, rest = self._env.read(partial(query, wanted=rest, covers=covers))
            found += entries
        return found

    def record(
        self,
        *,
        actor: str,
        action: str,
        target: str = "",
        owner: str = "",
        principals: Iterable[str] = (),
        detail: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Add an entry about something that changed nothing, such as a refused access; see `append`."""
        noted = Noted(actor, action, target, owner, tuple(principals), dict(detail or {}))
        self.record_all([noted])

    def record_all(self, entries: Sequence[Noted], *, since: float | None = None) -> None:
        """Add entries, all in one transaction.

        since: left out are those that name somebody who was forgotten then or later (Unix seconds).
        """

        def work(txn: Txn) -> None:
            for entry in entries:
                names = (entry.actor, entry.owner)
                if since is None or not any(forgotten.is_whole(txn, name, since) for name in names):
                    append(txn, **entry._asdict())

        self._writable().write(work)

    def log_head(self) -> str:
        """`seq:hash` of the newest entry. Kept elsewhere, it shows later that nothing up to here was written anew."""
        return str(self._env.read(head_of))


def _target(txn: Txn, row: Row) -> str:
    return row.cube_id or _name(txn, row.thing)


def _name(txn: Txn, pseudonym: bytes) -> str:
    if not pseudonym:
        return ""
    name = pseudonyms.name_of(txn, pseudonym)
    return f"forgotten:{pseudonym.hex()[:8]}" if name is None else name


def number_key(seq: int) -> bytes:
    return seq.to_bytes(8)


def hash_of(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=HASH_BYTES).digest()


def row_of(seq: int, stored: bytes) -> Row:
    try:
        return msgspec.msgpack.decode(stored[HASH_BYTES:], type=Row)
    except msgspec.MsgspecError as error:
        raise VaultUnavailable(f"Audit entry {seq} is damaged ({error}); run `memos-vllm vault verify`.") from error


def _entry(txn: Txn, row: Row, digest: bytes) -> LogEntry:
    return LogEntry(
        seq=row.seq,
        at=row.at,
        actor=_name(txn, row.actor),
        action=row.action,
        target=_target(txn, row),
        owner=_name(txn, row.owner),
        principals=tuple(_name(txn, name) for name in row.principals),
        detail=row.detail,
        hash=digest.hex(),
    )


def _matcher(txn: Txn, wanted: LogQuery) -> Callable[[Row], bool] | None:
    """Whether a row is asked for; None where a name is asked for that the log does not know.

    Who may ask about one owner only does not learn by the time it takes whom else the log knows: their rows are looked
    at for an actor whom it does not know, too.
    """
    actor = pseudonyms.known(txn, wanted.actor) if wanted.actor else b""
    owner = pseudonyms.known(txn, wanted.owner) if wanted.owner else b""
    if owner is None or (actor is None and not owner):
        return None
    actor = _NOBODY if actor is None else actor

    def matches(row: Row) -> bool:
        return (
            (not actor or row.actor == actor)
            and (not owner or row.owner == owner)
            and (not wanted.action or row.action == wanted.action)
            and (not wanted.until or row.at < wanted.until)
            and (not wanted.since or row.at >= wanted.since)
            and (not wanted.target or _target(txn, row) == wanted.target)
        )

    return matches


def _is_covered(txn: Txn, row: Row, covers: Covers) -> bool:
    """Whether a row is about a cube that is there and covered, or about none."""
    cube = find(txn, row.cube_id) if row.cube_id else None
    return not row.cube_id or (cube is not None and covers(cube))


def _candidates(txn: Txn, wanted: LogQuery) -> Iterator[tuple[Row, bytes]]:
    """Rows between the numbers and times that the query names, by the owner's index where it names one."""
    first = max(wanted.after + 1, _first_at(txn, wanted.since) if wanted.since else 1)
    last = head_of(txn).seq
    if wanted.before:
        last = min(last, wanted.before - 1)
    if wanted.until:
        last = min(last, _first_at(txn, wanted.until) - 1)
    for seq in _numbers(txn, wanted, first, last):
        stored = txn.get("audit", number_key(seq))
        if stored is None:
            raise VaultUnavailable(f"Audit entry {seq} is missing; run `memos-vllm vault verify`.")
        yield row_of(seq, stored), stored[:HASH_BYTES]


def _numbers(txn: Txn, wanted: LogQuery, first: int, last: int) -> Iterator[int]:
    if not wanted.owner:
        whole = range(first, last + 1)
        yield from reversed(whole) if wanted.newest_first else whole
        return
    owner = pseudonyms.known(txn, wanted.owner) or b""
    if first > last:
        return
    rows = txn.scan("audit_owners", owner, after=owner + number_key(first - 1))
    if wanted.newest_first:
        rows = txn.scan_back("audit_owners", owner, before=owner + number_key(last + 1))
    for key, _ in rows:
        seq = int.from_bytes(key[pseudonyms.BYTES :])
        if not first <= seq <= last:
            return
        yield seq


def _first_at(txn: Txn, moment: str) -> int:
    """Number of the first entry at or after a moment; times never go down along the log."""
    low, high = 1, head_of(txn).seq + 1
    while low < high:
        middle = (low + high) // 2
        stored = txn.get("audit", number_key(middle))
        if stored is not None and row_of(middle, stored).at < moment:
            low = middle + 1
        else:
            high = middle
    return low
