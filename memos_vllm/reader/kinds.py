"""What a sentence does: tell something, ask, demand, or only be polite. Rules for English; other languages are told
apart from it.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["statement", "instruction", "question", "request", "talk"]
"""`instruction`: a wish for all answers to come ("always answer in French"); `request`: one for this answer."""

MIN_ENGLISH = 0.15
"""Share of English function words from which on a text counts as English."""


def _any_of(*phrases: str) -> str:
    return f"(?:{'|'.join(phrases)})"


_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ENGLISH = (
    "the and my you of to with for that have it we our are from not but this they his her at were been because there "
    "would like live work i'm i've i'd don't it's is has had your she he me as when what which how always never "
    "favourite favorite love name was be by do does please now use call want need can could should about just got "
    "going some than then who where why here into over after before only very more likes loves lives works wants"
)
_POLITE = (
    "hi hello hey there thanks thank you so much very ok okay yes no yep nope yeah sure great good nice cool perfect "
    "fine awesome wow lol haha right exactly correct indeed bye goodbye see later morning evening afternoon night day "
    "please sorry sounds got it i well alright that's that is a lot again works for me makes sense welcome how are "
    "interesting i'm back done too same here understood agreed of course maybe all the best go ahead continue next "
    "more never mind worries problem"
)
_ENGLISH_WORDS, _POLITE_WORDS = frozenset(_ENGLISH.split()), frozenset(_POLITE.split())

_LEAD = re.compile(
    "(?:"
    + _any_of(
        r"oh|ok|okay|well|actually|also|and|but|so|by the way|btw|fyi|hi|hello|hey(?: there)?|yes|yeah|yep|no|nope|hmm",
        r"ah|now|nowadays|currently|these days|since then|thanks|thank you|please|sorry|anyway|honestly|personally",
        r"in fact|to be honest|good (?:morning|evening)|just so you know|for the record|one more thing|as i said",
        r"update|correction|(?:please )?(?:remember|note|keep in mind|don['’]t forget|know|be aware)(?: that|:)",
        r"you should know(?: that)?|(?:i )?(?:should|must|forgot to) (?:mention|add|say)(?: that|:)?",
    )
    + r"\b[\s,.:;!—–-]*)+",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    _any_of(
        r"(?:what|who|whom|whose|when|where|why|which|how)(?:['’]s)?\s+(?:is|are|was|were|do|does|did|can|could|should|"
        r"would|will|has|have|to|about|many|much|long|far|often|come)\b",
        r"(?:do|does|did|is|are|was|were|am|can|could|will|would|should|shall|may|might|have|has|any)(?:n['’]t)?\s+"
        r"(?:the|a|an|i|you|we|they|he|she|it|my|your|our|there|this|that|idea|chance|one)\b",
    ),
    re.IGNORECASE,
)
_FROM_NOW = "(?:always|from now on|in (?:the )?future|going forward|every time)"
_STANDING = re.compile(
    r"(?:please\s+)?"
    + _any_of(
        rf"(?:{_FROM_NOW}|never|whenever)\b",
        r"(?:call|address) me\b",
        r"(?:don['’]t|do not) (?:ever|call me)\b",
        rf"(?:answer|reply|respond|speak|talk|write|use)\b.*\b{_FROM_NOW}\b",
    ),
    re.IGNORECASE,
)
_VERBS = _any_of(
    "write|give|tell|show|explain|make|create|list|translate|summari[sz]e|help|find|generate|fix|suggest|recommend",
    "describe|compare|draft|imagine|suppose|pretend|assume|act as|act like|play|calculate|compute|solve|rewrite",
    "rephrase|continue|stop|try|check|look|search|name|define|convert|outline|plan|design|implement|refactor|review|debug|add",
    "remove|delete|change|replace|consider|think|say|repeat|read|answer|reply|respond|use|go on|provide|forget|count",
    "sort|pick|choose|send|open|run|test|ask|teach|sing|guess|improve|correct|proofread|shorten|expand|analy[sz]e",
)
_REQUEST = re.compile(
    _any_of(
        r"please\b",
        r"(?:can|could|would|will) you\b",
        r"let['’]?s\b",
        r"i(?:['’]d| would)? (?:just )?(?:want|need|like) you to\b",
        r"i(?:['’]d like| want| need|['’]m trying) to (?:know|ask|see|understand|learn (?:about|more)|find out)\b",
        r"i (?:have|had|['’]ve got) (?:a|another|one|some) (?:more )?questions?\b",
        r"i(?:['’]m| am| was) (?:wondering|asking)\b|i wonder\b|i need (?:your |some )?help\b",
        rf"{_VERBS}\s+(?!(?:is|are|was|were|has|have)\b)",
    ),
    re.IGNORECASE,
)


def is_english(text: str) -> bool:
    """Whether the rules here apply: enough English function words, or a capital I that stands alone."""
    words: list[str] = _WORD.findall(text.replace("’", "'"))
    if not words:
        return text.isascii()
    known = sum(word.lower() in _ENGLISH_WORDS or word == "I" for word in words)
    return known >= MIN_ENGLISH * len(words)


def lead(sentence: str) -> int:
    """Length of what only leads in: "Oh, by the way, …", "Remember that …"."""
    match = _LEAD.match(sentence)
    return match.end() if match and match.end() < len(sentence) else 0


def kind_of(sentence: str) -> Kind:
    """What an English sentence does. Statements are what is left when nothing else fits."""
    rest = sentence[lead(sentence) :].strip()
    if all(word.lower() in _POLITE_WORDS for word in _WORD.findall(rest.replace("’", "'"))):
        return "talk"
    if rest.rstrip("\"'”’) ").endswith(("?", "？", "؟")):
        return "question"
    if _STANDING.match(rest):
        return "instruction"
    if _REQUEST.match(rest) or _REQUEST.match(sentence.lstrip()):
        return "request"
    return "question" if _QUESTION.match(rest) else "statement"
