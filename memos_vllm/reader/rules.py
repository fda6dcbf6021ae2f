"""RuleReader: what an English message tells, found by rules alone; every draft is a stretch of its message.

Statements are kept; questions, requests and small talk are not. A statement that leans on the one before it ("It is
called Tilda.") joins it. Of a message that asks for something only what the user says of themselves is kept: the rest
is material. A message in another language is kept whole, as an episode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from memos_vllm.cube import SemanticType
from memos_vllm.reader.about import About, about
from memos_vllm.reader.base import MAX_DRAFTS, Draft, Spoken
from memos_vllm.reader.kinds import Kind, is_english, kind_of, lead
from memos_vllm.reader.sentences import Span, clauses, own_words, sentences, trimmed
from memos_vllm.reader.times import happened, moments

MAX_EPISODE = 2000
"""Characters of a message in another language that are kept."""
LONG = 4000
"""Characters from which on a message is taken for material, of which only what the user says of themselves is kept."""
MIN_WORDS = 2

_LEANING = re.compile(
    r"(?:it|it['’]s|its|he|he['’]s|she|she['’]s|they|they['’]re|them|his|her|their|this|that|that['’]s|these|those|there|"
    r"both|another|the (?:first|second|other|last) one)\b",
    re.IGNORECASE,
)
_SELF = re.compile(r"\b(?:I|I['’]\w+|i['’]?m|i|my|mine|me|myself|we|we['’]\w+|our|ours|us)\b|\b(?:My|We|Our)\b")
_PAST = re.compile(
    r"\b(?:was|were|had|went|saw|met|bought|got|took|made|came|ate|ran|found|told|said|left|felt|did|flew|drove|wrote|won|"
    r"lost|broke|began|became|used to|\w{3,}ed)\b",
    re.IGNORECASE,
)
_PLAN = re.compile(r"\b(?:will|going to|gonna|plan(?:ning)? to|about to)\b|\w['’]ll\b", re.IGNORECASE)
_ASKING_TAIL = re.compile(
    r"[,;:–—-]\s*+(?:and |so |but )?(?:what|which|who|when|where|why|how|do|does|did|is|are|can|could|would|will|"
    r"should|any|right|isn['’]t|don['’]t|or)\b",
    re.IGNORECASE,
)
_REASON = re.compile(
    r"(?:since|as|because|given that|now that)\s+(?P<reason>(?:I|I['’]\w+|my|we)\b[^,;]*),.*\?", re.IGNORECASE
)
_PREFERENCES = frozenset(("favourit", "taste", "choice", "prefer", "answer", "use", "diet", "switch"))
_STATES = frozenset(("home", "employer", "job", "status", "diet"))
_SOUGHT = ("statement", "instruction")


@dataclass(frozen=True)
class Unit:
    """One memory's worth of a message: a statement, with those that lean on it. standing: a wish for all answers."""

    span: Span
    about: About
    standing: bool = False


@dataclass(frozen=True)
class Statement:
    """A unit with what kind of memory it makes; an episode is about nothing that a later statement contradicts."""

    span: Span
    semantic_type: SemanticType
    about: About


class RuleReader:
    """See `MemReader`. It needs no model, and reads a message in a fraction of a millisecond."""

    async def read(self, messages: Sequence[Spoken], *, owner: str, at: datetime, source: str) -> list[Draft]:
        """See `MemReader.read`."""
        return self.drafts(messages, at)

    def drafts(self, messages: Sequence[Spoken], at: datetime) -> list[Draft]:
        """What the user's messages tell, in order; a draft's text is a stretch of its message.

        Half characters, which JSON can carry and the vault cannot, are read as question marks.
        """
        said = ((one.name, one.text.encode(errors="replace").decode()) for one in messages if one.role == "user")
        return [replace(draft, speaker=name) for name, text in said for draft in _drafts(text, at)]


def date_of(words: str, key: str, at: datetime) -> str:
    """The date of a memory: what it tells of; of something that has one value at a time, when that was said."""
    return at.date().isoformat() if key else happened(words, at)


def is_to_come(words: str, meant: About, at: datetime) -> bool:
    """Whether a state begins later ("I'm moving to Porto in May."): until then it is as it was."""
    if meant.family not in _STATES:
        return False
    return _PLAN.search(words) is not None or any(moment.first > at.date() for moment in moments(words, at))


def statements(text: str, at: datetime) -> list[Statement]:
    """What an English message sent at `at` states, in order: the first MAX_DRAFTS of it."""
    found = []
    for unit in units(text)[:MAX_DRAFTS]:
        semantic_type = _type(text[unit.span.start : unit.span.end], unit, at)
        found.append(Statement(unit.span, semantic_type, About() if semantic_type == "episode" else unit.about))
    return found


def units(text: str) -> list[Unit]:
    """The statements of an English message, in order; none of them overlap. Not many more than MAX_DRAFTS are read."""
    spans, material = sentences(text), len(text) > LONG
    kinds = [kind_of(text[span.start : span.end]) for span in spans]
    material = material or "request" in kinds
    found: list[Unit] = []
    last_sentence = -1
    for number, (span, kind) in enumerate(zip(spans, kinds, strict=True)):
        if len(found) > MAX_DRAFTS:
            break
        if kind == "question":
            span, kind = _told_in_question(text, span)
        if kind not in _SOUGHT:
            continue
        if found and last_sentence == number - 1 and _LEANING.match(text, span.start):
            found[-1] = Unit(Span(found[-1].span.start, span.end), found[-1].about, found[-1].standing)
            last_sentence = number
            continue
        clause_units = _clause_units(text, span, kind == "instruction")
        kept = [*islice((unit for unit in clause_units if _worth(text, unit, material)), MAX_DRAFTS)]
        found += kept
        last_sentence = number if kept else last_sentence
    return found


def _drafts(text: str, at: datetime) -> Iterator[Draft]:
    if not is_english(text):
        yield from _foreign(text, at)
        return
    for told in statements(text, at):
        words, key = text[told.span.start : told.span.end], told.about.key
        yield Draft(words, told.semantic_type, (), date_of(words, key, at), key, 0.9 if key else 0.6)


def _foreign(text: str, at: datetime) -> Iterator[Draft]:
    """A message that the rules cannot read, whole; not when it is a question, or a word or two."""
    own = [trimmed(text, *stretch) for stretch in own_words(text)]
    span = max(own, key=lambda stretch: stretch.end - stretch.start, default=Span(0, 0))
    words = text[span.start : min(span.end, span.start + MAX_EPISODE)].strip()
    spaced = len(words.split()) > MIN_WORDS or (not words.isascii() and len(words) > 2 * MIN_WORDS)
    if spaced and kind_of(words) == "statement":
        yield Draft(words, "episode", happened=at.date().isoformat(), confidence=0.3)


def _told_in_question(text: str, span: Span) -> tuple[Span, Kind]:
    """What a question tells before it asks: "I'm vegetarian, what shall I cook?"."""
    sentence = text[span.start : span.end]
    if reason := _REASON.match(sentence, lead(sentence)):
        return trimmed(text, span.start + reason.start("reason"), span.start + reason.end("reason")), "statement"
    asks = sentence.rstrip("\"') \t\n").endswith("?")
    tail = _ASKING_TAIL.search(sentence, max(sentence.rfind(","), sentence.rfind(";"), 0)) if asks else None
    if tail:
        told = trimmed(text, span.start, span.start + tail.start())
        if kind_of(text[told.start : told.end]) == "statement" and _SELF.search(text, told.start, told.end):
            return told, "statement"
    return span, "question"


def _clause_units(text: str, sentence: Span, standing: bool) -> Iterator[Unit]:
    for part in clauses(text, sentence):
        words = text[part.start : part.end]
        if kind_of(words) in _SOUGHT:
            yield Unit(trimmed(text, part.start + lead(words), part.end), about(words), standing)


def _worth(text: str, unit: Unit, material: bool) -> bool:
    words = text[unit.span.start : unit.span.end]
    if unit.standing or unit.about.key:
        return True
    return len(words.split()) > MIN_WORDS and (not material or _SELF.search(words) is not None)


def _type(words: str, unit: Unit, at: datetime) -> SemanticType:
    if unit.standing or unit.about.key.partition(" ")[0] in _PREFERENCES:
        return "user_preference"
    if unit.about.key and unit.about.family != "do":
        return "episode" if is_to_come(words, unit.about, at) else "fact"
    past = not unit.about.key and _PAST.search(words)
    if past or _PLAN.search(words) or moments(words, at):
        return "episode"
    return "fact" if unit.about.key or _SELF.search(words) else "domain_knowledge"
