"""Names in the audit log: random stand-ins, which tell nobody's name once two rows are gone.

    pseudonyms     digest(principal)        16         pseudonym of a principal
                   … + digest(text)         16 + 16    pseudonym of a target that the principal owns
    names          pseudonym                16         NUL, salt (16 bytes), the principal or target

A pseudonym is the BLAKE2b hash of salt and name. So the log's chain, which covers pseudonyms, covers the names as well:
one that was changed no longer makes its pseudonym. Without the salt nobody can try names until one fits.
"""

import hashlib
import os
from collections.abc import Iterator
from itertools import islice

from memos_vllm.vault import keys
from memos_vllm.vault.env import Txn

BYTES = 16
_SALTED = b"\0"
_NAME = slice(len(_SALTED) + BYTES, None)


def made(txn: Txn, name: str, *, of: str | None = None) -> bytes:
    """The pseudonym of a principal, or of a target among what `of` owns; made where there is none yet. b"" for ""."""
    if not name:
        return b""
    key = keys.digest(name) if of is None else keys.digest(of) + keys.digest(name)
    known = txn.get("pseudonyms", key)
    if known is None:
        salted = os.urandom(BYTES) + name.encode()
        known = _hash(salted)
        txn.put("pseudonyms", key, known)
        txn.put("names", known, _SALTED + salted)
    return known


def known(txn: Txn, principal: str) -> bytes | None:
    """A principal's pseudonym, or None where the log never named them."""
    return txn.get("pseudonyms", keys.digest(principal))


def name_of(txn: Txn, pseudonym: bytes) -> str | None:
    """Whom or what a pseudonym stands for; None where that was forgotten."""
    stored = txn.get("names", pseudonym) if pseudonym else None
    return None if stored is None else stored[_NAME].decode(errors="replace")


def forget(txn: Txn, principal: str) -> int:
    """Remove a principal's name and the names of what they owned; returns how many names that were."""
    rows = list(_naming(txn, principal))
    for key, pseudonym in rows:
        txn.delete("pseudonyms", key)
        txn.delete("names", pseudonym)
    return len(rows)


def traces(txn: Txn, principal: str) -> int:
    """How many rows `forget` would find."""
    return sum(1 for _ in _naming(txn, principal))


def bearing(txn: Txn, principal: str) -> int:
    """How many names are this principal's. Reads all; what others have named so, a snapshot say, is their content."""
    content = {
        pseudonym
        for key, pseudonym in txn.scan("pseudonyms")
        if len(key) > keys.ID_BYTES and key.endswith(keys.digest(principal))
    }
    rows = txn.scan("names")
    return sum(stored[_NAME] == principal.encode() and pseudonym not in content for pseudonym, stored in rows)


def problems(txn: Txn, after: bytes, rows: int) -> tuple[list[str], bytes | None]:
    """What is wrong with `rows` pseudonyms and their names behind `after`; and the last of these, None at the end."""
    page = list(islice(txn.scan("pseudonyms", after=after), rows))
    found = [f"names {pseudonym.hex()}: {fault}" for key, pseudonym in page for fault in _faults(txn, key, pseudonym)]
    if len(page) == rows:
        return found, page[-1][0]
    if (extra := txn.count("names") - txn.count("pseudonyms")) > 0:
        found.append(f"names: {extra} rows without a pseudonym")
    return found, None


def _faults(txn: Txn, key: bytes, pseudonym: bytes) -> Iterator[str]:
    stored = txn.get("names", pseudonym)
    if stored is None:
        yield "missing"
    elif not stored.startswith(_SALTED) or _hash(stored[len(_SALTED) :]) != pseudonym:
        yield "changed, it does not make its pseudonym"
    elif keys.digest(stored[_NAME].decode()) != key[-keys.ID_BYTES :]:
        yield "belongs to another principal or target than its pseudonym"


def _hash(salted: bytes) -> bytes:
    return hashlib.blake2b(salted, digest_size=BYTES).digest()


def _naming(txn: Txn, principal: str) -> Iterator[tuple[bytes, bytes]]:
    """Rows of `pseudonyms` for a principal, for what they owned, and for what is nobody's and bears their name."""
    yield from txn.scan("pseudonyms", keys.digest(principal))
    nobodys = keys.digest("") + keys.digest(principal)
    pseudonym = txn.get("pseudonyms", nobodys)
    if pseudonym is not None:
        yield nobodys, pseudonym
