"""Which sentences of one text a query is about: BM25 with the text's sentences as the collection."""

import math
import re
from collections import Counter

from memos_vllm.vault.words import words_of

_SENTENCE = re.compile(r"\S[^.!?\n。！？]*(?:[.!?。！？]+|$|(?=\n))", re.MULTILINE)
_K1, _B = 1.5, 0.75


def sentence_scores(query: str, text: str) -> list[tuple[int, int, float]]:
    """`[start, end)` characters of each sentence that shares a word with the query, in order, with its score above 0.

    Scores are Okapi BM25 with Lucene's idf (Kamphuis et al., ECIR 2020, "Which BM25 Do You Mean?", table 1).
    """
    wanted = set(words_of(query))
    sentences = [(*match.span(), Counter(words_of(match.group()))) for match in _SENTENCE.finditer(text)]
    if not wanted or not sentences:
        return []
    mean = sum(words.total() for _, _, words in sentences) / len(sentences) or 1.0
    holding = Counter(word for _, _, words in sentences for word in wanted & words.keys())
    found = []
    for start, end, words in sentences:
        length = _K1 * (1 - _B + _B * words.total() / mean)
        shared = wanted & words.keys()
        score = sum(_idf(holding[word], len(sentences)) * words[word] / (words[word] + length) for word in shared)
        if score > 0:
            found.append((start, end, score))
    return found


def _idf(holding: int, sentences: int) -> float:
    return math.log(1 + (sentences - holding + 0.5) / (holding + 0.5))
