"""Search among what was archived. It stands in no index, so it is read: this costs what the owner has archived."""

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from memos_vllm.cube import MemCube, now
from memos_vllm.errors import NotFound
from memos_vllm.retrieval.base import Hit
from memos_vllm.retrieval.operator import MAX_CHARS
from memos_vllm.retrieval.ranking import bm25
from memos_vllm.retrieval.signals import MAX_WORDS
from memos_vllm.vault import Vault
from memos_vllm.vault.words import text_of, words_of

PAGE = 256
"""Cubes that are held at a time."""


def recall(
    vault: Vault, owner: str, query: str, *, admits: Callable[[MemCube], bool] = lambda _: True
) -> Iterator[Hit]:
    """The owner's archived cubes that share a word with the query, best first (BM25). Nothing is brought back by it.

    As in every search the rarest words of a long query count.
    admits: the cubes that there are for the caller; the scores are those of a memory without the others.
    Raises VaultUnavailable.
    """
    places = {word: place for place, word in enumerate(dict.fromkeys(words_of(query[:MAX_CHARS])))}
    lengths: dict[str, int] = {}
    holding: Counter[str] = Counter()
    for cube, words in _read(vault, owner, admits):
        lengths[cube.id] = words.total()
        holding.update(words.keys() & places.keys())
    rarest = sorted(holding, key=lambda word: (holding[word], places[word]))[:MAX_WORDS]
    rows = {cube_id: row for row, cube_id in enumerate(lengths)}
    counts = np.zeros((len(rarest), len(rows)), dtype=np.float32)
    if not counts.size:
        return
    for cube, words in _read(vault, owner, admits):
        if cube.id in rows:
            counts[:, rows[cube.id]] = [words[word] for word in rarest]
    scores = bm25(counts, np.array([*lengths.values()], dtype=np.float32))
    best = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores)]
    ids = [*lengths]
    for at in best.tolist():
        found = _still_archived(vault, ids[at])
        if found is not None and admits(found):
            yield Hit(found, float(scores[at]), {"lexical": float(scores[at])})


def _read(vault: Vault, owner: str, admits: Callable[[MemCube], bool]) -> Iterator[tuple[MemCube, Counter[str]]]:
    """The owner's archived cubes that have not expired, with their words."""
    moment, after = now(), ""
    while page := vault.list(owner, limit=PAGE, after=after, states={"archived"}):
        after = page[-1].id
        for cube in page:
            if not cube.expired(moment) and admits(cube):
                yield cube, Counter(words_of(text_of(cube)))


def _still_archived(vault: Vault, cube_id: str) -> MemCube | None:
    try:
        cube = vault.get(cube_id)
    except NotFound:
        return None
    return cube if cube.header.state == "archived" else None
