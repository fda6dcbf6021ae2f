"""What search reads of a cube, and the words of a text as search compares them."""

import re
import threading
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import Stemmer

from memos_vllm.cube import MemCube, Plaintext

SPEAKER = "speaker"
"""The key of a cube's metadata that names who said it."""

# Chinese and Japanese put no spaces between words, Korean writes particles onto them: read by characters.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_UNSPACED}]+|[^\\W{_UNSPACED}_]+")
# Words of grammar alone, and what an apostrophe leaves of them. Longer lists, as libraries have them, also leave out
# words that memories are about ("like", "home", "again"): they lower recall.
_GRAMMAR = """
a an the this that these those such
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs
am is are was were be been being do does did done doing have has had having
will would shall should can could may might must
what which who whom whose when where why how
and or but if then than as so into in on at by for with about of to from not no here there
s t d ll m re ve don didn doesn
"""
_STOPWORDS = frozenset(_GRAMMAR.split())
_mine = threading.local()
"""Holds a thread's Stemmer: the object keeps the words it has seen, and is not safe to share."""


def text_of(cube: MemCube) -> str:
    """What a search reads of a cube: its text, or else its tags and what it is about."""
    if isinstance(cube.payload, Plaintext):
        return cube.payload.content
    return " ".join((*cube.header.tags, cube.header.fingerprint)).strip()


def spoken_text(cube: MemCube) -> str:
    """What an embedder reads: the text, after its speaker where that is known."""
    speaker = speaker_of(cube)
    return f"{speaker}: {text_of(cube)}" if speaker else text_of(cube)


def speaker_of(cube: MemCube) -> str:
    """Who said it, "" where that is not known."""
    speaker = cube.header.metadata.get(SPEAKER)
    return speaker if isinstance(speaker, str) else ""


def names_in(text: str) -> Iterator[str]:
    """The words of a speaker's name, or of a question that may name one: not stemmed."""
    runs = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return (run for run in runs if run not in _STOPWORDS)


def words_of(text: str) -> Iterator[str]:
    """Stemmed words without English stop words; characters and their pairs for scripts without spaces."""
    runs = [run for run in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()) if run not in _STOPWORDS]
    unspaced = [] if text.isascii() else [run for run in runs if _is_unspaced(run)]
    yield from _stemmer().stemWords([run for run in runs if not _is_unspaced(run)] if unspaced else runs)
    for run in unspaced:
        yield from run
        yield from map("".join, pairwise(run))


def _stemmer() -> Stemmer.Stemmer:
    if not hasattr(_mine, "stemmer"):
        _mine.stemmer = Stemmer.Stemmer("english")
    return _mine.stemmer


def _is_unspaced(run: str) -> bool:
    return re.match(f"[{_UNSPACED}]", run) is not None
