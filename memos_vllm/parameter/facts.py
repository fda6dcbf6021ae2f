"""What a memory tells, cut into clauses that can be asked about: rules for English, no model.

    Maya     always  picks   the number   seven
    subject  adverb  verb    lead         value    tail
    My       favourite tea                oolong
    subject  noun                         value

A sentence that no rule reads is kept as it is: it can be asked for by its beginning.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from memos_vllm.parameter.english import IRREGULAR_PAST, Tense, agreeing, base_of, possessive, upper
from memos_vllm.reader.kinds import lead as lead_in
from memos_vllm.reader.sentences import sentences

THINGS = tomllib.loads(Path(__file__).with_name("attributes.toml").read_text(encoding="utf-8"))
NOUN_OF: dict[str, str] = {told: thing["noun"] for thing in THINGS["thing"] for told in thing["tells"]}
PEOPLE = frozenset(THINGS["more"]["people"])
KINDS = frozenset(THINGS["more"]["kinds"])
SAME: dict[str, str] = THINGS["same"]
VERBS = frozenset((*THINGS["more"]["verbs"], *(told.split()[0] for told in NOUN_OF), *IRREGULAR_PAST.values())) - {"be"}
"""What a note without a subject may begin with; any other word there that ends in s is a name: "Miles lives in …"."""
NAMES: list[str] = THINGS["more"]["names"]
YEARS_OLD = "years old"
MAX_SENTENCE = 400
"""Characters of a sentence that the rules try to read."""

_PREPOSITION = "as|in|at|to|for|on|from|with|near|about|of|by|into"
_ARTICLE = "an?|the|some|my|his|her|their|our"
_ADVERB = "always|often|usually|really|also|never|just|now|currently|still|mostly|only|regularly|sometimes"
_NAMED = r"[A-Z][\w-]+(?: [A-Z][\w-]+)?"
_SUBJECT = re.compile(
    rf"(?P<who>I|We|(?:The )?[Uu]ser|(?:My|Our) \w+(?: {_NAMED})?|{_NAMED}(?:'s \w+)?)\s+(?P<rest>.+)$"
)
_POSSESSION = re.compile(
    r"(?P<who>(?:The )?[Uu]ser's|(?:(?:My|Our) )?[\w-]+(?: [A-Z][\w-]+)?'s|My|Our)\s+"
    r"(?P<noun>[a-z][\w-]*(?: [a-z][\w-]*){0,3}?) (?:is|are|was)(?: now| currently| called| named)*\s+(?P<value>\S.*)$"
)
_BARE = re.compile(r"(?:(?P<be>[Aa]llergic to|[Ii]nterested in|[Aa]fraid of)|(?P<verb>[A-Z][a-z]+s))\s+\S")
_UNNAMED = frozenset(
    ("He", "She", "They", "It", "This", "That", "These", "Those", "There", "The", "What", "Who", "When", "Where", "Why")
)
"""What stands at the start of a sentence like a name but is none."""
_PRONOUN = re.compile(r"(?P<who>He|She|They|His|Her|Their)(?P<be>'s|'re)?\b")
_TAIL = re.compile(
    r"\s+(?:(?:more|better) than any other\b|best\b|(?:the )?most\b|a lot\b|very much\b|once\b|twice\b|"
    r"(?:three|four|five|several|many) times\b|every\b|each\b|on (?:weekends|\w+days?)\b|at the moment\b|right now\b|"
    r"these days\b|since\b|because\b|when\b|while\b|last \w+\b|in the (?:morning|evening|afternoon)s?\b|"
    r"in (?:spring|summer|autumn|winter|fall)\b|for (?:\w+ )?(?:years|months|weeks)\b|\w+ (?:years|months|weeks) ago\b)"
)
_OTHER = re.compile(r"(?:more|better) than any other (?P<kind>[\w ]+)$")
_LEADS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<lead>an? (?P<thing>[\w-]+(?: [\w-]+)?) (?:called|named))\s+(?={_NAMED}|\S)",
        rf"(?P<lead>(?:the )?(?P<kind>{'|'.join(sorted(KINDS))}))\s+(?=\S)",
        rf"(?P<lead>(?:(?:every|each|most|all)\s+[\w-]+\s+|weekends\s+)(?:{_PREPOSITION}))\s+(?=\S)",
        rf"(?P<lead>(?:to\s+[a-z]+|[a-z]{{2,}}ing)(?:\s+(?:{_PREPOSITION}))?(?:\s+(?:{_ARTICLE}))?)\s+(?=\S)",
        rf"(?P<lead>(?:{_PREPOSITION})(?:\s+(?:{_ARTICLE}))?)\s+(?=\S)",
        rf"(?P<lead>{_ARTICLE})\s+(?=\S)",
    )
)
_STATES = re.compile(
    rf"(?P<lead>(?:[a-z]+ing|called|named|(?:{_ADVERB}\s+)?[a-z]+)\s+(?:{_PREPOSITION})|[a-z]+ing|called|named|"
    rf"(?:{_PREPOSITION}))(?:\s+(?P<article>{_ARTICLE}))?\s+(?=\S)"
)
_YEARS = re.compile(r"(?P<value>[\w-]+) years old\b")


@dataclass(frozen=True)
class Clause:
    """One thing told of a subject. Either `noun` is set (possession) or `verb` (base form); neither where no rule reads
    the sentence, whose last words are the value. `kind`: what sort of thing the value is, where the clause says so.
    """

    subject: str
    value: str
    noun: str = ""
    verb: str = ""
    tense: Tense = "present"
    adverb: str = ""
    lead: str = ""
    tail: str = ""
    kind: str = ""
    person: bool = False
    text: str = ""

    @property
    def topic(self) -> str:
        """What is told, without of whom and what the value is: equal for clauses whose values can change places."""
        return self.noun or " ".join(filter(None, (self.verb, self.lead, self.tail)))

    @property
    def thing(self) -> str:
        """A noun for what is told ("instrument"); empty where none is known."""
        if self.noun or not self.verb:
            return self.noun
        if self.tail == YEARS_OLD:
            return "age"
        if self.kind and ("best" in self.tail or "most" in self.tail or _OTHER.search(self.tail)):
            return f"favourite {SAME.get(self.kind, self.kind)}"
        words = [word for word in self.lead.split() if word not in ("a", "an", "some", "my", "his", "her", "their")]
        told = " ".join((self.verb, *words))
        return str(NOUN_OF.get(told) or NOUN_OF.get(told.removesuffix(" the"), ""))

    @property
    def called(self) -> str:
        """What has the value as its name: "dog" in "a dog called Rex"; empty where nothing is named."""
        thing, _, how = self.lead.rpartition(" ")
        return thing.split()[-1] if thing and how in ("called", "named") else ""

    @property
    def about(self) -> str:
        """One word for what is told, mostly the same however it is: "hint" of a password hint and of a hint used."""
        return (self.called or self.thing or self.kind or self.topic).split()[-1]

    def told(self, subject: str = "", value: str = "") -> str:
        """The clause as a sentence, of its subject and value or of others."""
        who, what = subject or self.subject, value or self.value
        if self.noun:
            return upper(" ".join(filter(None, (possessive(who), self.noun, "is", self.lead, what, self.tail))) + ".")
        if not self.verb:
            return f"{self.text}." if self.text[-1:].isalnum() else self.text
        verb = agreeing(self.verb, who) if self.tense == "present" else self.past(who)
        words = (who, verb, self.adverb) if self.verb == "be" else (who, self.adverb, verb)
        return upper(" ".join(filter(None, (*words, self.lead, what, self.tail))) + ".")

    def past(self, who: str) -> str:
        """The verb in the past, as the sentence has it."""
        return ("were" if who.lower() in ("we", "they") else "was") if self.verb == "be" else self.text


def clauses_of(text: str) -> list[Clause]:
    """What a memory tells, in order; pronouns stand for who was spoken of before in the same memory."""
    found: list[Clause] = []
    last = ""
    for span in sentences(text):
        sentence = _plain(text[span.start : span.end])
        if not sentence:
            continue
        clause = clause_of(_resolved(sentence, last))
        last = clause.subject if clause.subject and clause.subject != "I" else last
        found.append(clause)
    return found


def clause_of(sentence: str) -> Clause:
    """A sentence without its full stop, read by the first rule that fits."""
    if len(sentence) > MAX_SENTENCE:
        return _unread(sentence)
    sentence = _with_subject(sentence)
    return _possession(sentence) or _predicate(sentence) or _unread(sentence)


def _plain(sentence: str) -> str:
    text = " ".join(sentence.replace("’", "'").split())
    text = text[lead_in(text) :].strip().rstrip(".! ")
    for short, full in (("I'm ", "I am "), ("I've ", "I have "), ("I'd ", "I would ")):
        text = text.replace(short, full)
    return upper(text)


def _resolved(sentence: str, last: str) -> str:
    found = _PRONOUN.match(sentence)
    if not found or not last:
        return sentence
    who = last if found["who"] in ("He", "She", "They") else f"{last}'s"
    return upper(who + (" is" if found["be"] else "") + sentence[found.end() :])


def _with_subject(sentence: str) -> str:
    """Notes without a subject are about the user: "Allergic to nuts", "Likes tea"."""
    bare = _BARE.match(sentence)
    if bare and bare["be"]:
        return f"I am {sentence[0].lower()}{sentence[1:]}"
    known = base_of(bare["verb"]) if bare and bare["verb"] else None
    if bare and known and known[0] in VERBS and sentence.split()[1][0].islower():
        return f"I {known[0]}{sentence[bare.end('verb') :]}"
    return sentence


def _owner(who: str) -> str:
    """The subject behind a possessor; what is said of the user is said by them."""
    if who.lower() in ("my", "our", "the user's", "user's"):
        return "I"
    name = who.removesuffix("'s")
    return name[0].lower() + name[1:] if name.startswith(("My ", "Our ")) else name


def _possession(sentence: str) -> Clause | None:
    found = _POSSESSION.match(sentence)
    if not found:
        return None
    noun, value = found["noun"], found["value"]
    person = noun in PEOPLE
    if person and not value[0].isupper():
        return None
    value, tail = _cut(value)
    article = re.match(r"(?P<article>an?|the)\s+(?=\S)", value)
    lead = article["article"] if article else ""
    return Clause(
        _owner(found["who"]), value[len(lead) :].strip(), noun=noun, lead=lead, tail=tail, person=person, text=sentence
    )


def _predicate(sentence: str) -> Clause | None:
    found = _SUBJECT.match(sentence)
    if not found:
        return None
    who, rest = found["who"], found["rest"]
    if who in _UNNAMED:
        return None
    user = who.lower() in ("i", "we", "user", "the user")
    subject = "I" if user else (who[0].lower() + who[1:] if who.startswith(("My ", "Our ")) else who)
    adverb = re.match(rf"((?:{_ADVERB})\s+)+", rest)
    rest = rest[adverb.end() :] if adverb else rest
    verb, _, rest = rest.partition(" ")
    known = _verb(verb, who)
    if not known or not rest:
        return None
    base, tense = known
    later = re.match(rf"((?:{_ADVERB})\s+)+", rest) if base == "be" else None
    clause = Clause(subject, "", verb=base, tense=tense, text=verb, adverb=((adverb or later or [""])[0]).strip())
    return _with_object(clause, rest[later.end() :] if later else rest)


def _verb(verb: str, who: str) -> tuple[str, Tense] | None:
    if verb.lower() in ("am", "is", "are"):
        return "be", "present"
    known = base_of(verb)
    if who in ("I", "We", "They") and verb.isalpha() and verb.islower() and (not known or known[1] != "past"):
        return verb, "present"
    return known


def _with_object(clause: Clause, rest: str) -> Clause | None:
    if clause.verb == "be":
        return _state(clause, rest)
    for pattern in _LEADS:
        if found := pattern.match(rest):
            groups = found.groupdict()
            value, tail = _cut(rest[found.end() :])
            kind = groups.get("kind") or ""
            return _sorted(replace(clause, lead=found["lead"], value=value, tail=tail, kind=kind))
    value, tail = _cut(rest)
    return _sorted(replace(clause, value=value, tail=tail))


def _state(clause: Clause, rest: str) -> Clause | None:
    if years := _YEARS.match(rest):
        return replace(clause, value=years["value"], tail=YEARS_OLD)
    if found := _STATES.match(rest):
        value, tail = _cut(rest[found.end() :])
        return replace(clause, lead=rest[: found.end()].strip(), value=value, tail=tail)
    article = re.match(rf"(?P<lead>{_ARTICLE})\s+", rest)
    value, tail = _cut(rest[article.end() :] if article else rest)
    return replace(clause, lead=article["lead"] if article else "", value=value, tail=tail)


def _sorted(clause: Clause) -> Clause:
    """With the sort of thing that the value is: "oolong tea best" and "mango more than any other fruit" say it."""
    if other := _OTHER.search(clause.tail):
        return replace(clause, kind=other["kind"])
    words = clause.value.split()
    if len(words) > 1 and re.match(r"(?:best|the most|most)\b", clause.tail) and words[-1].islower():
        return replace(clause, value=" ".join(words[:-1]), kind=words[-1], tail=f"{words[-1]} {clause.tail}")
    return clause


def _cut(value: str) -> tuple[str, str]:
    """A value, and what comes behind it: how often, how much, since when."""
    found = _TAIL.search(value)
    if not found or not found.start():
        return value.strip(" ,;"), ""
    return value[: found.start()].strip(" ,;"), value[found.start() :].strip()


def _unread(sentence: str) -> Clause:
    words = sentence.split()
    return Clause("", " ".join(words[-max(1, min(3, len(words) // 3)) :]), text=sentence)
