"""As much English grammar as it takes to ask about a statement: verb forms, possessives, who speaks to whom."""

from __future__ import annotations

import re
from typing import Literal

Tense = Literal["present", "past"]

_PAST = """
be was, be were, have had, do did, go went, see saw, meet met, buy bought, get got, take took, make made, come came,
eat ate, run ran, find found, tell told, think thought, say said, leave left, feel felt, fly flew, drive drove,
write wrote, win won, lose lost, break broke, begin began, become became, bring brought, build built, catch caught,
choose chose, drink drank, fall fell, forget forgot, give gave, grow grew, hear heard, hold held, keep kept, know knew,
lend lent, pay paid, ride rode, sing sang, sit sat, send sent, sleep slept, spend spent, speak spoke, swim swam,
teach taught, understand understood, wear wore, sell sold, study studied, try tried, marry married, carry carried"""
IRREGULAR_PAST = {past: base for base, past in (pair.split() for pair in _PAST.split(","))}
_THIRD = {"has": "have", "does": "do", "goes": "go", "is": "be"}
_FORM_OF_THIRD = {"have": "has", "do": "does", "go": "goes", "be": "is"}
_NO_VERBS = frozenset(("this", "his", "its", "as", "us", "is", "was", "always", "perhaps", "sometimes", "across"))
_PLURAL = frozenset(("i", "we", "you", "they"))

_TO_LISTENER = {
    "i am": "you are", "i was": "you were", "i'm": "you are", "i've": "you have", "i": "you", "we": "you", "me": "you",
    "us": "you", "my": "your", "our": "your", "mine": "yours", "ours": "yours", "myself": "yourself",
}  # fmt: skip
_TO_SPEAKER = {
    "you are": "I am", "you were": "I was", "you": "I", "your": "my", "yours": "mine", "yourself": "myself",
}  # fmt: skip


def base_of(verb: str) -> tuple[str, Tense] | None:
    """A verb's base form and tense from its form in the third person or the past; None for what is neither."""
    word = verb.lower()
    if word in _THIRD:
        return _THIRD[word], "present"
    if word in IRREGULAR_PAST:
        return IRREGULAR_PAST[word], "past"
    if word in _NO_VERBS or not word.isalpha() or len(word) < 3:
        return None
    if word.endswith("ed"):
        return _base_of_ed(word), "past"
    if not word.endswith("s") or word.endswith("ss"):
        return None
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y", "present"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word[:-2], "present"
    return word[:-1], "present"


def _base_of_ed(word: str) -> str:
    stem = word[:-2]
    if stem.endswith("i"):
        return stem[:-1] + "y"
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sl":
        return stem[:-1]
    if stem.endswith(("v", "s", "z", "c", "u", "ng", "at", "ir", "bl", "pl")) and not stem.endswith("ss"):
        return stem + "e"
    return stem


def agreeing(base: str, subject: str) -> str:
    """A verb in the present tense as its subject wants it: "play" → "plays" for Maya, "play" for I."""
    if subject.lower() in _PLURAL:
        return {"i": "am"}.get(subject.lower(), "are") if base == "be" else base
    if base in _FORM_OF_THIRD:
        return _FORM_OF_THIRD[base]
    if base.endswith("y") and base[-2:-1] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def possessive(subject: str) -> str:
    """I → my, Maya → Maya's."""
    return {"i": "my", "we": "our"}.get(subject.lower(), f"{subject}'s")


def upper(text: str) -> str:
    """With a capital at the start."""
    return text[:1].upper() + text[1:]


def to_listener(text: str) -> str:
    """What a speaker says of themselves, said back to them: "My tea is oolong." → "Your tea is oolong."."""
    return _turned(text, _TO_LISTENER)


def to_speaker(text: str) -> str:
    """The way back: "You play the cello." → "I play the cello."."""
    return upper(_turned(text, _TO_SPEAKER))


def _turned(text: str, words: dict[str, str]) -> str:
    longest = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w'])(?:{'|'.join(longest)})(?![\w'])", re.IGNORECASE)

    def put(found: re.Match[str]) -> str:
        new = words[found[0].lower()]
        starts = found.start() == 0 or text[: found.start()].rstrip()[-1:] in (".", "!", "?")
        return upper(new) if starts else new

    return pattern.sub(put, text)
