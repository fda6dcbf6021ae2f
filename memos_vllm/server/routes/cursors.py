"""Places in the audit log that tell nothing of it: where a page ended, without how much others did before.

A cursor is the entry's number under a keyed permutation of 64 bits (four Feistel rounds, Luby and Rackoff 1988) with
BLAKE2b as round function. It holds for one user, and until the server is started with another secret.
"""

from __future__ import annotations

import hashlib

from memos_vllm.errors import BadInput

ROUNDS = 4
_HALF = (1 << 32) - 1
_LARGEST = 1 << 40
"""Numbers are below it: of 64 bits 24 are 0, which tells a cursor from any other text."""


def cursor_of(seq: int, secret: bytes, user: str) -> str:
    """16 hex digits."""
    left, right = seq >> 32, seq & _HALF
    for number in range(ROUNDS):
        left, right = right, left ^ _round(number, right, secret, user)
    return f"{left << 32 | right:016x}"


def seq_of(cursor: str, secret: bytes, user: str) -> int:
    """The number that a cursor stands for. Raises BadInput for one that was not made for this user by this server."""
    if len(cursor) != 16 or set(cursor) - set("0123456789abcdef"):
        raise BadInput("That is no cursor: send the `next` of the page before.")
    value = int(cursor, 16)
    left, right = value >> 32, value & _HALF
    for number in reversed(range(ROUNDS)):
        left, right = right ^ _round(number, left, secret, user), left
    seq = left << 32 | right
    if seq >= _LARGEST:
        raise BadInput("This cursor is of another user or an earlier start of the server: begin with the first page.")
    return seq


def _round(number: int, half: int, secret: bytes, user: str) -> int:
    data = bytes([number]) + half.to_bytes(4) + user.encode()
    return int.from_bytes(hashlib.blake2b(data, key=secret[:64], digest_size=4, person=b"memos-audit").digest())
