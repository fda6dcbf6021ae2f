"""Cuts messages into statements, each a stretch of the message: nothing is reworded.

message     a person's text, code blocks and quoted lines left out
sentence    up to . ! ? or the line's end; a list goes with the line that announces it
clause      a part of a sentence with a first person of its own ("I live in Lisbon | and my cat is Tilda")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MAX_TEXT = 1 << 16
"""Characters of a message that are read."""

_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|^[ \t]*>[^\n]*$|^(?: {4}|\t)\S[^\n]*$", re.DOTALL | re.MULTILINE)
# Runs of blanks and stops are read once, from their first character: a pasted table has thousands of them.
_BREAK = re.compile(
    r"(?<![.!?。！？…])(?P<stop>[.!?。！？…]++[\"'”’)\]]*+)(?=\s|$)|(?P<wide>[。！？])|(?P<line>\n\s*+)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|etc|e\.g|i\.e|approx|no|a\.m|p\.m|u\.s|inc|ltd|co)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)])\s")
_CLAUSE = re.compile(
    r"(?:[,;:]|(?<![\s,;:]))\s++(?:and|but|so|also|while)\s++(?:also\s++)?"
    r"(?=(?:(?:now|then|currently)\s++)?(?:I|I'm|I've|I’m|I’ve|my|My|we|our)\b)|;\s++(?=\S)"
)
_ENOUGH = re.compile(r"(?:\s*+\S++){3}")
"""The words of a clause that stands on its own."""


class Span(NamedTuple):
    """`text[start:end]`, without blanks at its ends."""

    start: int
    end: int


def own_words(text: str) -> Iterator[Span]:
    """The stretches of a message that are neither code nor quotation."""
    text, start = text[:MAX_TEXT], 0
    for code in _CODE.finditer(text):
        yield Span(start, code.start())
        start = code.end()
    yield Span(start, len(text))


def sentences(text: str) -> list[Span]:
    """The sentences of a message, in order."""
    return [span for stretch in own_words(text) for span in _sentences(text, stretch)]


def clauses(text: str, sentence: Span) -> list[Span]:
    """A sentence's parts that stand on their own, or the sentence."""
    parts, start = [], sentence.start
    for joint in _CLAUSE.finditer(text, sentence.start, sentence.end):
        if _ENOUGH.match(text, start, joint.start()) and _ENOUGH.match(text, joint.end(), sentence.end):
            parts.append(trimmed(text, start, joint.start()))
            start = joint.end()
    return [*parts, trimmed(text, start, sentence.end)]


def trimmed(text: str, start: int, end: int) -> Span:
    """The stretch without blanks at its ends."""
    part = text[start:end]
    return Span(start + len(part) - len(part.lstrip()), start + len(part.rstrip()))


def _sentences(text: str, stretch: Span) -> Iterator[Span]:
    start = stretch.start
    for stop in _BREAK.finditer(text, stretch.start, stretch.end):
        if stop["line"]:
            if _in_list(text, start, stop, stretch.end):
                continue
        elif stop["stop"] == "." and _ABBREVIATION.search(text, max(start, stop.start() - 8), stop.end()):
            continue
        span = trimmed(text, start, stop.end())
        if span.start < span.end:
            yield span
        start = stop.end()
    last = trimmed(text, start, stretch.end)
    if last.start < last.end:
        yield last


def _in_list(text: str, start: int, line: re.Match[str], end: int) -> bool:
    """Whether the next line belongs to a list that the sentence so far announces."""
    first = text.find("\n", start, line.start())
    announced = ":" in text[start : line.start() if first < 0 else first][-2:]
    return announced and _BULLET.match(text, line.end() - 1, end) is not None
