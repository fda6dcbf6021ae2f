"""Search among what was archived. It stands in no index, so it is read: this costs what the owner has archived."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from memos_vllm.cube import MemCube, now
from memos_vllm.retrieval.base import Hit
from memos_vllm.retrieval.ranking import bm25
from memos_vllm.vault import Vault
from memos_vllm.vault.words import text_of, words_of


def recall(vault: Vault, owner: str, query: str, *, admits: Callable[[MemCube], bool] = lambda _: True) -> list[Hit]:
    """The owner's archived cubes that share a word with the query, best first (BM25). Nothing is brought back by it.

    admits: the cubes that there are for the caller; the scores are those of a memory without the others.
    Raises VaultUnavailable.
    """
    moment, asked = now(), [*dict.fromkeys(words_of(query))]
    cubes = [cube for cube in vault.list(owner, states={"archived"}) if not cube.expired(moment) and admits(cube)]
    if not cubes or not asked:
        return []
    held = [Counter(words_of(text_of(cube))) for cube in cubes]
    counts = np.array([[words[word] for words in held] for word in asked], dtype=np.float32)
    scores = bm25(counts, np.array([words.total() for words in held], dtype=np.float32))
    best = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores)]
    return [Hit(cubes[at], float(scores[at]), {"lexical": float(scores[at])}) for at in best.tolist()]
