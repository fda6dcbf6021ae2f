"""A made-up conversation in LoCoMo's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SESSIONS: dict[int, tuple[str, list[tuple[str, ...]]]] = {
    1: (
        "9:05 am on 3 March, 2024",
        [
            ("Ines", "Morning! Did you repair the greenhouse after the storm?"),
            ("Bruno", "Half of it. The panes on the north side are new, the door still hangs loose."),
            ("Ines", "I could lend you my clamps."),
            ("Bruno", "Please do. Look what grew meanwhile.", "a bowl of yellow quinces"),
        ],
    ),
    2: (
        "12:40 pm on 21 April, 2024",
        [
            ("Bruno", "The clamps worked, the door shuts again."),
            ("Ines", "Good. I have signed up for a course in bookbinding in Ghent."),
            ("Bruno", "Since when do you care about books?"),
            ("Ines", "Since grandmother left me her atlas with a broken spine."),
            ("Bruno", "Then you will need linen thread."),
        ],
    ),
}
QUESTIONS: list[dict[str, Any]] = [
    {"question": "What did Ines lend Bruno?", "evidence": ["D1:3; D1:4"], "category": 1},
    {"question": "When did Bruno tell that the door shuts again?", "evidence": ["D2:1"], "category": 2},
    {"question": "Where is the course in bookbinding?", "evidence": ["D2:2", "D7:1"], "category": 4},
    {"question": "What is Bruno's favourite colour?", "evidence": ["D"], "category": 5},
]


def sample(name: str = "garden") -> dict[str, Any]:
    """One conversation: nine turns, three questions with evidence, one without, one id that no turn has."""
    conversation: dict[str, Any] = {"speaker_a": "Ines", "speaker_b": "Bruno"}
    for number, (at, turns) in SESSIONS.items():
        conversation[f"session_{number}_date_time"] = at
        conversation[f"session_{number}"] = [
            {"dia_id": f"D{number}:{place}", "speaker": turn[0], "text": turn[1]}
            | ({"blip_caption": turn[2]} if len(turn) > 2 else {})
            for place, turn in enumerate(turns, 1)
        ]
    return {"sample_id": name, "conversation": conversation, "qa": QUESTIONS}


def write_data(path: Path, *names: str) -> Path:
    path.write_text(json.dumps([sample(name) for name in names or ("garden",)]))
    return path
