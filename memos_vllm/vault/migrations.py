"""Recorded migrations: how a vault of an older schema becomes one of this schema, in one transaction.

The row "schema" of `meta` says which schema the records have, and `memos.json` repeats it for a look from outside.
Schema 1 had no such row.
"""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from memos_vllm.errors import NotAVault, VaultFull, VaultUnavailable
from memos_vllm.vault import audit, books, index
from memos_vllm.vault.env import Environment, Txn
from memos_vllm.vault.records import SCHEMA, Damaged, rewritten

log = logging.getLogger(__name__)

ACTOR = "memos-vllm"
_SCHEMA = b"schema"
_BATCH = 1000
_MAP_BYTES = 64 << 20


class Migration(NamedTuple):
    """One step. schema: the schema that it leads to."""

    schema: int
    name: str
    apply: Callable[[Txn], None]


def schema_of(txn: Txn) -> int:
    """The schema of the records."""
    stored = txn.get("meta", _SCHEMA)
    return 1 if stored is None else int.from_bytes(stored)


def stamp(txn: Txn) -> None:
    """Mark a new vault as one of this schema and begin its audit log; nothing where that is done."""
    if txn.get("meta", _SCHEMA) is None:
        _mark(txn, SCHEMA)
        index.rebuild(txn)
        audit.append(txn, actor=ACTOR, action="vault.create", detail={"schema": SCHEMA})


def refresh(env: Environment) -> None:
    """Make search index and books anew where another version of them was left behind.

    Raises VaultFull, VaultUnavailable.
    """
    if env.read(index.is_current):
        return
    log.warning("The search index of %s is of another version and is made anew.", env.folder.parent)
    env.write(_remake)


def _remake(txn: Txn) -> None:
    try:
        books.rebuild(txn)
    except Damaged as damage:
        raise VaultUnavailable(f"A record is damaged ({damage}); restore a backup.") from damage
    index.rebuild(txn)


def migrate(folder: Path) -> None:
    """Bring the vault whose data file lies in `folder` to this schema; all of it or nothing.

    Raises NotAVault where a record is damaged, VaultInUse where another process has the vault open, StartError.
    """
    log.warning("Migrating %s to vault schema %d; older versions cannot open it afterwards.", folder.parent, SCHEMA)
    env = Environment(folder, readonly=False, map_bytes=_MAP_BYTES, max_bytes=None, alone=True)
    try:
        env.write(_apply)
    except Damaged as damage:
        raise NotAVault(
            f"{folder} has a damaged record ({damage}) and was left as it is; restore it from a backup."
        ) from damage
    except (VaultFull, VaultUnavailable) as error:
        raise NotAVault(f"{folder} could not be migrated and was left as it is: {error}") from error
    finally:
        env.close()


def _apply(txn: Txn) -> None:
    for step in MIGRATIONS:
        before = schema_of(txn)
        if before < step.schema:
            step.apply(txn)
            _mark(txn, step.schema)
            audit.append(
                txn, actor=ACTOR, action="vault.migrate", detail={"from": before, "to": step.schema, "name": step.name}
            )


def _mark(txn: Txn, schema: int) -> None:
    txn.put("meta", _SCHEMA, schema.to_bytes(2))


def _with_audit_and_index(txn: Txn) -> None:
    """Schema 2: the search index, statistics of owners and the audit log begin; records stay what they say."""
    for database in ("cubes", "versions", "events", "revisions", "kv", "doomed", "uses"):
        for key, stored in _rows(txn, database):
            txn.put(database, key, rewritten(stored, database, key, schema=1))
    books.rebuild(txn)
    index.rebuild(txn)


def _rows(txn: Txn, database: str) -> Iterator[tuple[bytes, bytes]]:
    """Every row, read in batches so that it may be written to meanwhile."""
    after = b""
    while batch := list(islice(txn.scan(database, after=after), _BATCH)):
        yield from batch
        after = batch[-1][0]


MIGRATIONS = (Migration(2, "search index, statistics of owners, audit log", _with_audit_and_index),)
