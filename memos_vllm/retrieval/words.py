"""The words of a text, as search compares them."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import Stemmer
from bm25s.stopwords import STOPWORDS_EN_PLUS

# Chinese and Japanese put no spaces between words, Korean writes particles onto them: read by characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_UNSPACED}]+|[^\\W{_UNSPACED}_]+")
_STOPWORDS = frozenset(re.findall(r"\w+", " ".join(STOPWORDS_EN_PLUS)))


def words_of(text: str) -> Iterator[str]:
    """Stemmed words without English stop words; characters and their pairs for scripts without spaces."""
    runs = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    # A Stemmer object is not safe to share between threads.
    yield from Stemmer.Stemmer("english").stemWords(
        [run for run in runs if run not in _STOPWORDS and not _unspaced(run)]
    )
    for run in filter(_unspaced, runs):
        yield from run
        yield from map("".join, pairwise(run))


def _unspaced(run: str) -> bool:
    return re.match(f"[{_UNSPACED}]", run) is not None
