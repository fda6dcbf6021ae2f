"""New memories against known ones: a second copy is left out, a contradiction becomes a new version of the old one.

What a memory says is read from its text each time, for its owner may have changed it. A memory of several statements
keeps the others: only the contradicted stretch is replaced. Where in doubt whether two statements contradict each
other, both are kept: a memory too many does less harm than one that is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from memos_vllm.cube import MemCube, Plaintext, new_id
from memos_vllm.reader.about import About, Words, about, stems
from memos_vllm.reader.base import Draft
from memos_vllm.reader.kinds import is_english
from memos_vllm.reader.rules import Statement, statements
from memos_vllm.reader.sentences import Span, sentences
from memos_vllm.vault.words import speaker_of

MAX_TEXT = 1 << 14
"""Characters of a known memory that is compared."""
MAX_COMPARED = 1 << 18
"""Characters of all known memories together."""
_CHANGEABLE = frozenset(("generated", "activated"))
_OWN = re.compile(r"\b(?:I|I['’]\w+|my|mine|we|our|ours)\b|\d|(?<=[\w,;:] )[A-Z]")
"""What a comment has not ("It is so good."): the speaker, numbers, names."""


@dataclass(frozen=True)
class Add:
    """A memory that is new. id: the one that it will have."""

    draft: Draft
    id: str


@dataclass(frozen=True)
class Update:
    """A new version of a memory. text: the whole of it; expect: the version it was read in.

    happened: "" for a memory of several statements, whose date stays.
    """

    draft: Draft
    id: str
    text: str
    expect: int
    happened: str


@dataclass(frozen=True)
class Skip:
    """Nothing to store. why: `known` word for word or in other words, `outdated` by what is known already."""

    draft: Draft
    id: str
    why: Literal["known", "outdated"]


Action = Add | Update | Skip
Relation = Literal["same", "replaces", "none"]


@dataclass
class _Known:
    """A memory as the actions so far leave it. said: the date of what it tells; changeable: it may be replaced."""

    id: str
    text: str
    version: int
    said: str
    told: list[Statement]
    speaker: str
    changeable: bool = True

    def words(self, statement: Statement) -> str:
        return self.text[statement.span.start : statement.span.end]


def reconcile(
    drafts: Sequence[Draft],
    known: Sequence[MemCube],
    *,
    at: datetime,
    changeable: Callable[[MemCube], bool] = lambda cube: True,
) -> list[Action]:
    """What to do about each draft, in order, so that nothing is known twice.

    known: memories of the same owner that may be about the same, the likeliest first; those that cannot change, and
    what is too long together, are passed over. at: when the drafts' messages were sent; what is known from later is not
    replaced. changeable: those of the memories that a draft may replace.
    """
    held, room = [], MAX_COMPARED
    for cube in filter(_comparable, known):
        if len(cube.text) <= room:
            held.append(_known(cube, at, changeable(cube)))
            room -= len(cube.text)
    actions = []
    for draft in drafts:
        action = _action(draft, held, at)
        _remember(action, held, at)
        actions.append(action)
    return actions


def relation(new: About, old: About) -> Relation:
    """How a statement relates to an older one by what they are about."""
    if not new.key or not old.key:
        return "none"
    if new.key == old.key:
        return _by_old(new, old) if new.key == "favourit" or new.family == "switch" else _by_value(new, old)
    if new.old and not old.negative and new.old <= (old.value or frozenset(old.key.split()[1:])):
        return "replaces" if old.family in ("favourit", "taste", "prefer", "choice", "switch") else "none"
    tastes = [one for one in (new, old) if one.family == "taste"]
    others = [one for one in (new, old) if one.family == "favourit"]
    if tastes and others and tastes[0].negative and not others[0].negative:
        return "replaces" if frozenset(tastes[0].key.split()[1:]) == others[0].value else "none"
    return "none"


def _by_old(new: About, old: About) -> Relation:
    """Of keys that do not say what it is about ("Oolong is my favourite."): what a statement names is replaced."""
    if new.value == old.value and new.old == old.old:
        return "same" if new.negative == old.negative else "replaces"
    return "replaces" if new.old and new.old <= old.value else "none"


def _by_value(new: About, old: About) -> Relation:
    if new.value == old.value:
        return "same" if new.negative == old.negative else "replaces"
    if new.negative or old.negative:  # "I don't live in Rome" says nothing of where else
        return "none"
    return "replaces" if new.replaces and old.replaceable else "none"


def _action(draft: Draft, held: Sequence[_Known], at: datetime) -> Action:
    meant, words = _about(draft), stems(draft.text)
    held = [known for known in held if known.speaker == draft.speaker]
    for known, statement in _closest(held):
        found = relation(meant, statement.about)
        if found == "none" and _same_words(draft, meant, words, known, statement):
            found = "same"
        if found == "same":
            return Skip(draft, known.id, "known")
        if found == "replaces":
            if at.date().isoformat() < known.said[:10]:
                return Skip(draft, known.id, "outdated")
            if known.changeable and not _tells_more(known, statement):
                return _update(draft, known, statement)
    same = next((known for known in held if known.text.strip() == draft.text.strip() and _same_day(draft, known)), None)
    return Skip(draft, same.id, "known") if same else Add(draft, new_id())


def _update(draft: Draft, known: _Known, statement: Statement) -> Update:
    happened = draft.happened if len(known.told) == 1 else ""
    return Update(draft, known.id, _with(known, statement, draft.text), known.version, happened)


def _tells_more(known: _Known, statement: Statement) -> bool:
    """Whether sentences that lean on a statement tell something of their own, which would go with it or turn false."""
    words = known.words(statement)
    first = next(iter(sentences(words)), Span(0, len(words)))
    return _OWN.search(words, first.end) is not None


def _closest(held: Sequence[_Known]) -> Iterator[tuple[_Known, Statement]]:
    """Every known statement, the latest memories first."""
    for known in sorted(held, key=lambda one: (one.said, one.id), reverse=True):
        for statement in known.told:
            yield known, statement


def _about(draft: Draft) -> About:
    return About() if draft.semantic_type == "episode" or not is_english(draft.text) else about(draft.text)


def _same_words(draft: Draft, meant: About, mine: Words, known: _Known, statement: Statement) -> bool:
    """The same in other forms of the same words; an episode is the same only on the same day."""
    if "episode" in (draft.semantic_type, statement.semantic_type) and not _same_day(draft, known):
        return False
    same_side = meant.negative == statement.about.negative
    return bool(mine) and same_side and mine == stems(known.words(statement))


def _same_day(draft: Draft, known: _Known) -> bool:
    return draft.semantic_type != "episode" or draft.happened[:10] == known.said[:10]


def _with(known: _Known, statement: Statement, text: str) -> str:
    """The memory's text with one statement replaced."""
    if len(known.told) == 1 and len(sentences(known.text)) == 1:
        return text
    return known.text[: statement.span.start] + text + known.text[statement.span.end :]


def _comparable(cube: MemCube) -> bool:
    payload, header = cube.payload, cube.header
    plain = isinstance(payload, Plaintext) and payload.format == "text" and len(payload.content) <= MAX_TEXT
    return plain and header.state in _CHANGEABLE and not cube.expired()


def _known(cube: MemCube, at: datetime, changeable: bool) -> _Known:
    said = cube.header.happened or cube.header.created
    told = _told(cube.text, cube.header.semantic_type == "episode", at)
    return _Known(cube.id, cube.text, cube.version, said, told, speaker_of(cube), changeable)


def _told(text: str, episode: bool, at: datetime) -> list[Statement]:
    if not is_english(text):
        return []
    if episode:
        return [Statement(Span(0, len(text)), "episode", About())]
    return statements(text, at)


def _remember(action: Action, held: list[_Known], at: datetime) -> None:
    """Let the next drafts of the same messages see what this one does."""
    if isinstance(action, Skip):
        return
    text = action.text if isinstance(action, Update) else action.draft.text
    version = action.expect + 1 if isinstance(action, Update) else 1
    held[:] = [known for known in held if known.id != action.id]
    told = _told(text, action.draft.semantic_type == "episode", at)
    held.append(_Known(action.id, text, version, action.draft.happened, told, action.draft.speaker))
