"""Questions about what memories tell, in many phrasings, some of which are held out from training.

A *form* is a phrasing without what it is about ("Tell me {my} {noun}."). Forms, not single questions, are held out:
no question of a held-out form is trained on, whatever it asks about.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from memos_vllm.parameter.english import agreeing, possessive, to_listener, upper
from memos_vllm.parameter.facts import YEARS_OLD, Clause, clauses_of

HELD_OUT_SHARE = 0.25
"""Part of the forms that fit a fact and are not trained on."""

NOUN_FORMS = (
    "What is {p} {n}?", "Tell me {p} {n}.", "Do you know {p} {n}?", "{P} {n}?", "Remind me what {p} {n} is.",
    "I would like to know {p} {n}.", "What do you know about {p} {n}?", "Can you say what {p} {n} is?",
    "Please name {p} {n}.", "I forgot {p} {n}. What is it?",
)  # fmt: skip
PERSON_FORMS = (
    "Who is {p} {n}?", "What is the name of {p} {n}?", "What is {p} {n} called?", "Tell me the name of {p} {n}.",
    "Do you know who {p} {n} is?", "Remind me who {p} {n} is.", "{P} {n}?", "Tell me {p} {n}'s name.",
    "Do you know {p} {n}'s name?", "What name does {p} {n} have?", "I forgot who {p} {n} is. Do you remember?",
)  # fmt: skip
FAVOURITE_FORMS = (
    "Which {k} is {p} favourite?", "What {k} {do} {s} like best?", "Which {k} {do} {s} like most?",
    "What {k} {do} {s} prefer?", "Tell me which {k} {s} {like} best.", "Do you know which {k} {s} {like} best?",
)  # fmt: skip
VERB_FORMS = (
    "{W} {aux} {s} {vp}?", "Tell me {w} {s} {told}.", "Do you know {w} {s} {told}?", "Can you say {w} {s} {told}?",
    "I forgot {w} {s} {told}. Do you remember?", "Remind me {w} {s} {told}.",
)  # fmt: skip
CALLED_FORMS = (
    "What is {p} {n} called?", "What is the name of {p} {n}?", "What {do} {s} call {r} {n}?",
    "Tell me the name of {p} {n}.", "Do you know the name of {p} {n}?", "{P} {n}?", "Tell me what {p} {n} is called.",
    "Do you know what {s} {call} {r} {n}?", "What name does {p} {n} have?", "Remind me what {p} {n} is called.",
)  # fmt: skip
CLOZE_FORMS = (
    "Complete this: {c}", "How does this go on: {c}", "Finish the sentence: {c}", "What comes after this: {c}",
    "I remember only this: {c} What else?", "Go on: {c}",
)  # fmt: skip
OPEN_FORMS = ("What do you know about {s}?", "Tell me about {s}.")
RECALL = "What do you remember?"
"""Open questions: any statement about the subject, or any at all, is an answer."""

_AGREEING = re.compile(r"\b(?:does|do|is|am|are|their|my|your)\b")
_ARTICLES = frozenset(["a", "an", "the", "some", "my", "his", "her", "their", "our"])
_PLACES = frozenset(("live in", "live at", "live near", "come from", "be from", "be in", "be at", "move to", "stay in"))


@dataclass(frozen=True)
class Question:
    """A phrasing of what a fact answers; `form` tells phrasings apart."""

    form: str
    text: str


@dataclass(frozen=True)
class Fact:
    """One clause of a memory. `source`: `id@version` of its cube; `statement`: as the memory's owner says it."""

    clause: Clause
    source: str
    questions: tuple[Question, ...]

    @property
    def statement(self) -> str:
        return self.clause.told()

    @property
    def value(self) -> str:
        return self.clause.value

    @property
    def reply(self) -> str:
        """The statement as it is said to the memory's owner."""
        return to_listener(self.statement)

    def is_right(self, answer: str) -> bool:
        """Whether an answer names the value, as words of their own."""
        return names(answer, self.value)


def names(answer: str, value: str) -> bool:
    """Whether `value` stands in `answer`, whatever the case, not as part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(value.lower())}(?!\w)", answer.lower()) is not None


def facts_of(text: str, source: str = "") -> list[Fact]:
    """What a memory tells; nothing for a text without words."""
    clauses = clauses_of(text)
    return [Fact(clause, source, tuple(_distinct(questions_about(clause)))) for clause in clauses if clause.value]


def questions_about(clause: Clause) -> Iterator[Question]:
    """Every form that fits a clause."""
    if not clause.noun and not clause.verb:
        beginning = clause.text[: clause.text.rfind(clause.value)].strip()
        words = {"c": f"{beginning} ..."}
        yield from _filled(CLOZE_FORMS, "cloze", words)
        return
    words = _words(clause, clause.thing)
    if clause.person:
        yield from _filled(PERSON_FORMS, "person", words)
        return
    if clause.called:
        thing = clause.lead.rpartition(" ")[0]
        yield from _filled(CALLED_FORMS, "called", _words(clause, thing.partition(" ")[2] or thing))
        return
    if clause.thing or clause.kind:
        yield from _filled(NOUN_FORMS, "noun", _words(clause, clause.thing or clause.kind))
    if clause.thing.startswith("favourite "):
        yield from _filled(FAVOURITE_FORMS, "favourite", words)
    elif clause.verb:
        yield from _verb_questions(clause)


def _verb_questions(clause: Clause) -> Iterator[Question]:
    """What does Maya play, what instrument, which instrument."""
    thing = clause.kind or clause.thing.removeprefix("favourite ")
    phrase = _asked_phrase(clause)
    for asking, name in _askings(clause, thing):
        words = {**_words(clause, clause.thing), **phrase, "w": asking, "W": upper(asking)}
        yield from _filled(VERB_FORMS, name, words)


def _askings(clause: Clause, thing: str) -> Iterator[tuple[str, str]]:
    """The words that ask, and a name for each."""
    told = f"{clause.verb} {clause.lead}".strip()
    if clause.tail == YEARS_OLD:
        yield "how old", "old"
    elif told in _PLACES:
        yield "where", "where"
    elif "married" in clause.lead or "engaged" in clause.lead:
        yield "who", "who"
    else:
        yield "what", "what"
        if thing:
            yield f"what {thing}", "what thing"
            yield f"which {thing}", "which thing"


def _asked_phrase(clause: Clause) -> dict[str, str]:
    """The predicate without its value, in a question and behind one: "does … play", "… plays"."""
    lead = [word for word in clause.lead.split() if word not in _ARTICLES]
    if " ".join((clause.verb, *lead)) in _PLACES and lead and lead[-1] != "from":
        lead = lead[:-1]
    if clause.kind and lead[-1:] == [clause.kind]:
        lead = lead[:-1]
    tail = "" if clause.tail == YEARS_OLD else clause.tail.removeprefix(f"{clause.kind} ").strip()
    tail = "" if "any other" in tail else tail
    rest = " ".join((*lead, tail)).strip()
    past = clause.tense == "past"
    if clause.verb == "be":
        verb = clause.past(clause.subject) if past else agreeing("be", clause.subject)
        return {"aux": verb, "vp": " ".join((clause.adverb, rest)).strip(), "told": f"{verb} {rest}".strip()}
    told = clause.past(clause.subject) if past else agreeing(clause.verb, clause.subject)
    aux = "did" if past else agreeing("do", clause.subject)
    asked = " ".join(filter(None, (clause.adverb, clause.verb, rest)))
    return {"aux": aux, "vp": asked, "told": " ".join(filter(None, (clause.adverb, told, rest)))}


def _words(clause: Clause, noun: str) -> dict[str, str]:
    who = clause.subject
    return {
        "s": who,
        "p": possessive(who),
        "P": upper(possessive(who)),
        "n": noun,
        "k": noun.removeprefix("favourite "),
        "do": agreeing("do", who),
        "like": agreeing("like", who),
        "call": agreeing("call", who),
        "r": "my" if who == "I" else "their",
    }


def _filled(forms: Sequence[str], name: str, words: dict[str, str]) -> Iterator[Question]:
    for form in forms:
        yield Question(f"{name}: {form}", " ".join(form.format(**words).split()).replace(" ?", "?").replace(" .", "."))


def _distinct(questions: Iterable[Question]) -> Iterator[Question]:
    seen: set[str] = set()
    for question in questions:
        if question.text not in seen:
            seen.add(question.text)
            yield question


@dataclass(frozen=True)
class Split:
    """The questions of each fact, in the facts' order: to train on, and held out."""

    trained: tuple[tuple[Question, ...], ...]
    held_out: tuple[tuple[Question, ...], ...]


def split(facts: Sequence[Fact], rng: random.Random, never: Iterable[str] = ()) -> Split:
    """Hold out forms, the same for all facts. `never`: questions whose phrasings are held out instead, whomever they
    ask about. Every fact keeps at least one form to train on and, without `never`, one held out where it has two.
    """
    subjects = {fact.clause.subject for fact in facts}
    banned = {masked(text, subjects) for text in never}
    held = frozenset[str]() if banned else _held_forms(facts, rng)
    trained, kept = [], []
    for fact in facts:
        allowed = [each for each in fact.questions if masked(each.text, subjects) not in banned] or [*fact.questions]
        mine = [each for each in allowed if each.form not in held] or allowed[:1]
        trained.append(tuple(mine))
        kept.append(tuple(each for each in allowed if each not in mine))
    return Split(tuple(trained), tuple(kept))


def _held_forms(facts: Sequence[Fact], rng: random.Random) -> frozenset[str]:
    """A quarter of the forms of every family, and no fewer than one."""
    families: dict[str, list[str]] = {}
    for form in dict.fromkeys(question.form for fact in facts for question in fact.questions):
        families.setdefault(form.partition(":")[0], []).append(form)
    chosen: list[str] = []
    for forms in families.values():
        if len(forms) > 1:
            chosen += rng.sample(forms, max(1, round(HELD_OUT_SHARE * len(forms))))
    return frozenset(chosen)


def masked(question: str, subjects: Iterable[str]) -> str:
    """A question without whom it asks about, for comparing phrasings."""
    text = question.lower()
    for subject in sorted((who.lower() for who in subjects if who), key=len, reverse=True):
        for words in (possessive(subject).lower(), subject):
            text = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", "@", text)
    return _AGREEING.sub("do", text)


def open_questions(facts: Sequence[Fact]) -> list[tuple[str, list[Fact]]]:
    """Open questions with the facts that answer them."""
    about: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.clause.subject:
            about.setdefault(fact.clause.subject, []).append(fact)
    found = [(form.format(s="me" if who == "I" else who), told) for who, told in about.items() for form in OPEN_FORMS]
    return [*found, (RECALL, list(facts))]


def spread(items: Sequence[Question], count: int) -> list[Question]:
    """`count` items, evenly spaced."""
    return [items[place * len(items) // count] for place in range(count)] if len(items) > count else list(items)
