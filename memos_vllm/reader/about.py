"""What an English statement is about, so that a later one about the same can replace it.

Patterns are read from the start of a sentence, after its lead-in: SUBJECT + predicate ("I live in …", "my sister
works at …"), or a possession ("my favourite tea is …"). What no pattern knows is compared word for word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memos_vllm.reader import patterns
from memos_vllm.reader.kinds import lead
from memos_vllm.vault.words import words_of

Words = frozenset[str]

MAX_SENTENCE = 600
"""Characters of a sentence that patterns are tried on."""

_NUMBERS = frozenset(words_of("one two three four five six seven eight nine ten eleven twelve"))
MAX_DEED_WORDS = 6
"""Words of a key without a pattern; a longer sentence has none."""
MAX_PLAIN = 3
"""Words from which on a value in lower case is taken for a description."""
_NAMING = frozenset(("home", "employer", "job", "attribute", "name", "nickname"))
"""Families whose values are names as a rule."""

PROBES = {
    "home": "live lives moved home city", "employer": "work works joined company employer job",
    "job": "work works job profession", "name": "name call called", "status": "married single engaged divorced",
    "nicknam": "name call called nickname",
    "diet": "vegan vegetarian diet eat", "answers": "answer reply language", "age": "years old age",
}  # fmt: skip
"""Words that other statements about the same may hold, for the search for them."""


@dataclass(frozen=True)
class About:
    """What a statement is about.

    key: "home", "favourite tea", "taste oolong"; empty where no pattern fits. value: stemmed words of what is said of
    it; empty for keys that say everything ("taste oolong"). old: stemmed words of what it replaces by its own account.
    replaces, replaceable: whether another value takes the place of this one, and this one that of another. A value that
    only describes ("my phone is broken") does neither, one in lower case ("my job is teacher") replaces another where
    the sentence speaks of a change.
    """

    key: str = ""
    value: Words = frozenset()
    negative: bool = False
    old: Words = frozenset()
    replaces: bool = True
    replaceable: bool = True

    @property
    def family(self) -> str:
        """The first word of the key."""
        return self.key.partition(" ")[0]

    @property
    def probe(self) -> str:
        """Words to search other statements about the same with."""
        return f"{self.key} {PROBES.get(self.family, '')}"


def about(sentence: str) -> About:
    """What an English statement is about; nothing for one about the past, which no later one contradicts."""
    text = " ".join(sentence[:MAX_SENTENCE].replace("’", "'").split())
    text = text[lead(text) :].strip()
    if patterns.PAST.search(_head(text)):
        return About()
    for family, pattern in patterns.POSSESSIONS:
        if found := pattern.match(text):
            return _possession(family, found, text)
    subject = patterns.SUBJECT.match(text)
    while subject:
        for family, pattern in patterns.PREDICATES:
            rest = text[subject.end() :]
            if found := pattern.match(rest) or pattern.match(rest.lstrip()):
                return _predicate(family, found, subject["who"], text)
        subject = _shorter(subject, text)
    return _deed(text)


def _deed(text: str) -> About:
    """What a person does, in the present: "I smoke", and "I quit smoking" as its contrary."""
    found = patterns.DEED.match(text)
    if not found or found["verb"].lower() in patterns.PAST_VERBS or found["verb"].lower().endswith("ed"):
        return About()
    words = _ordered(_core(found["what"] or ""))
    value = frozenset(word for word in words if word in _NUMBERS or word.isdigit())
    who = "" if found["who"].lower() in ("i", "we") else found["who"]
    verb = next(words_of(found["verb"]), found["verb"].lower())
    parts = [*_ordered(who), verb, *sorted({*words} - value)]
    return About(" ".join(("do", *parts)) if len(parts) <= MAX_DEED_WORDS else "", value, _negative(text))


def _shorter(subject: re.Match[str], text: str) -> re.Match[str] | None:
    """The same subject with a word less: "my sister works" is read as "my sister"."""
    who = subject["who"].rpartition(" ")[0]
    if not who or who.lower() in ("my", "our"):
        return None
    return re.match(rf"(?P<who>{re.escape(who)})(?=[\s'])", text)


def _possession(family: str, found: re.Match[str], text: str) -> About:
    groups = found.groupdict()
    thing = groups.get("thing") or ""
    key = {"favourite": f"favourite {thing}", "attribute": thing, "called": f"{thing} name", "use": f"use {thing}"}
    named = " ".join(_ordered(key.get(family, family).replace("'s", "")))
    sure = _sure(family, found["value"], text) if not groups.get("old") else (True, True)
    return About(named, _value(found["value"]), _negative(text), _value(groups.get("old") or ""), *sure)


def _predicate(family: str, found: re.Match[str], who: str, text: str) -> About:
    groups = found.groupdict()
    owner = "" if who.lower() in ("i", "we") else " ".join(_ordered(re.sub(r"(?i)^(?:my|our) ", "", who)))
    old, negative = _value(groups.get("old") or ""), _negative(text)
    value, about_what = _value(groups.get("value") or ""), ""
    if family == "preference":
        *details, head = [*_ordered(_core(found["value"]))] or [""]
        family, about_what = ("preference", head) if details else ("taste", head)
        value = frozenset(details)
    elif family == "choice":
        about_what = " ".join(sorted(value | _value(found["other"])))
        old = _value(found["other"])
    elif family in ("taste", "allergy"):
        about_what = " ".join(sorted(_value(found["what"])))
        negative = patterns.STAND.search(text) is not None or negative != bool(groups.get("dislike"))
    elif family == "switch":
        return About(" ".join(filter(None, ("switch", owner))), value, False, old)
    sure = _sure(family, groups.get("value") or "", text)
    return About(" ".join(filter(None, (family, owner, about_what))), value, negative, old, *sure)


def _sure(family: str, said: str, text: str) -> tuple[bool, bool]:
    """Whether what is said of something replaces what was said before, and may be replaced: where in doubt, neither."""
    value = _core(said).strip()
    named = patterns.NAMED.match(value) is not None and patterns.MEASURED.match(value) is None
    if family == "favourite":
        sure = named or patterns.DESCRIBING.match(value) is None
        return sure, sure
    if family == "answers":
        sure = not patterns.LANGUAGES.isdisjoint(value.lower().split())
        return sure, sure
    if family not in _NAMING:
        return True, True
    if patterns.BESIDE.search(said):
        return False, False
    if named:
        return True, True
    plain = family != "attribute" and len(value.split()) < MAX_PLAIN and patterns.DESCRIBING.match(value) is None
    return plain and patterns.CHANGE.search(text) is not None, plain


def _head(text: str) -> str:
    """The start of a sentence, in which its tense shows."""
    return " ".join(text.split()[:5])


def _core(value: str) -> str:
    """A value without what explains or dates it."""
    stop = patterns.STOP.search(value)
    core = value[: stop.start()] if stop and stop.start() else value
    return patterns.TAIL.sub("", core)


def _value(value: str) -> Words:
    return frozenset(words_of(_core(value)))


def _ordered(text: str) -> list[str]:
    return list(dict.fromkeys(words_of(text)))


def _negative(text: str) -> bool:
    return patterns.NEGATION.search(_head(text)) is not None


def stems(text: str) -> Words:
    """The stemmed words of a text, by which statements without a key are compared."""
    return frozenset(words_of(text))
