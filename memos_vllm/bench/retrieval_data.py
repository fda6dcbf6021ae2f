"""Conversations with questions and their evidence, in LoCoMo's JSON (Maharana et al., 2024, arXiv 2402.17753).

Only the format is known here. The data are CC BY-NC 4.0 and never part of this project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memos_vllm.errors import StartError

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
"""Names of the numbers in the data."""
_TURN = re.compile(r"D\d+:\d+")
_SESSION = re.compile(r"session_(\d+)")
_DATE = "%I:%M %p on %d %B, %Y"


@dataclass(frozen=True)
class Turn:
    """One message. parts: its text, then the caption of the picture sent with it, if any; at: ISO-8601."""

    id: str
    session: int
    at: str
    speaker: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """evidence: ids of the turns that answer it, all of them turns of its conversation, at least one."""

    text: str
    category: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """unanswerable: questions left out because no turn is named as their evidence; unknown: ids that no turn has."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    unanswerable: int
    unknown: int


def read_conversations(path: Path) -> list[Conversation]:
    """Read a file of conversations. Raises StartError where it is missing or not in LoCoMo's form."""
    try:
        conversations = [_conversation(sample) for sample in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise StartError(f"--data {path} cannot be read ({error.strerror}); name a JSON file as LoCoMo's") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise StartError(f"--data {path} is not conversations as LoCoMo's locomo10.json ({problem})") from error
    if not any(conversation.questions for conversation in conversations):
        raise StartError(f"--data {path} has no question with evidence")
    return conversations


def _conversation(sample: Mapping[str, Any]) -> Conversation:
    turns = tuple(_turns(sample["conversation"]))
    known = {turn.id for turn in turns}
    questions, unanswerable, unknown = [], 0, 0
    for asked in sample["qa"]:
        named = dict.fromkeys(match for text in asked["evidence"] for match in _TURN.findall(text))
        evidence = tuple(turn for turn in named if turn in known)
        unknown += len(named) - len(evidence)
        unanswerable += not evidence
        if evidence:
            category = CATEGORIES.get(asked["category"], str(asked["category"]))
            questions.append(Question(asked["question"], category, evidence))
    return Conversation(sample["sample_id"], turns, tuple(questions), unanswerable, unknown)


def _turns(conversation: Mapping[str, Any]) -> Iterator[Turn]:
    sessions = sorted(int(match[1]) for name in conversation if (match := _SESSION.fullmatch(name)))
    for session in sessions:
        at = datetime.strptime(conversation[f"session_{session}_date_time"].lower(), _DATE).replace(tzinfo=UTC)
        for turn in conversation[f"session_{session}"]:
            parts = tuple(text for text in (turn["text"], turn.get("blip_caption")) if text)
            yield Turn(turn["dia_id"], session, at.isoformat(), turn["speaker"], parts)


@dataclass(frozen=True)
class Chunk:
    """Successive turns of one session that are one memory."""

    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """A turn's own words, or several turns with their speakers before them."""
        if len(self.turns) == 1:
            return "\n".join(self.turns[0].parts)
        return "\n".join(f"{turn.speaker}: {' '.join(turn.parts)}" for turn in self.turns)


def sessions_of(turns: Sequence[Turn], chunk: int) -> list[list[Chunk]]:
    """The memories of each session, `chunk` turns in each, fewer in the last of a session."""
    sessions: dict[int, list[Turn]] = {}
    for turn in turns:
        sessions.setdefault(turn.session, []).append(turn)
    return [
        [Chunk(tuple(found[start : start + chunk])) for start in range(0, len(found), chunk)]
        for found in sessions.values()
    ]
