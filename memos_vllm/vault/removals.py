"""Removals that take several transactions: written down in the first one, gone in the last.

    meta    "removing " + digest(owner) + 1 for all about them, 0 for their cubes    what is to go

What ends on the way is gone on with when the vault is opened next.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from memos_vllm.cube import MemCube
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import keys
from memos_vllm.vault.adapters import is_adapter
from memos_vllm.vault.env import Txn
from memos_vllm.vault.records import Damaged, decode, encode

_PREFIX = b"removing "


class Removal(msgspec.Struct, frozen=True):
    """The cubes of an owner go. whole: with everything about them; asked: when, in the form of `cube.now`.

    snapshots: with copies in snapshots; adapters: of their adapters, too; again: it has been begun before, and what the
    owner has got since stays.
    """

    owner: str
    actor: str
    asked: str
    whole: bool = False
    snapshots: bool = False
    adapters: bool = True
    again: bool = False

    def takes(self, cube: MemCube) -> bool:
        old = not self.again or self.whole or cube.header.created <= self.asked
        return cube.owner == self.owner and old and (self.adapters or not is_adapter(cube))


class Step(NamedTuple):
    """A transaction of a removal: the ids of cubes that it looks at."""

    ids: Sequence[str]
    first: bool
    last: bool


def note(txn: Txn, removal: Removal, step: Step) -> None:
    """Write a removal down in its first transaction, if another follows, and strike it out in the last."""
    if step.last:
        end(txn, removal)
    elif step.first:
        begin(txn, removal)


def begin(txn: Txn, removal: Removal) -> None:
    txn.put("meta", _key(removal), encode(removal, "meta", _key(removal)))


def end(txn: Txn, removal: Removal) -> None:
    txn.delete("meta", _key(removal))


def under_way(txn: Txn) -> list[Removal]:
    """Those that were begun and have not ended, ready to be gone on with. Raises VaultUnavailable for a damaged row."""
    try:
        rows = [decode(stored, Removal, "meta", key) for key, stored in txn.scan("meta", _PREFIX)]
    except Damaged as error:
        raise VaultUnavailable("What a removal was to take is damaged: do it again, or restore a backup.") from error
    return [msgspec.structs.replace(removal, again=True) for removal in rows]


def _key(removal: Removal) -> bytes:
    return _PREFIX + keys.digest(removal.owner) + bytes([removal.whole])
