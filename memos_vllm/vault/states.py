"""The lifecycle of a cube (MemOS paper, section 5.4.2): which state may follow which."""

from collections.abc import Mapping
from types import MappingProxyType

from memos_vllm.cube import State
from memos_vllm.errors import Conflict

ALLOWED: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        "generated": frozenset({"activated", "merged", "archived", "expired", "frozen"}),
        "activated": frozenset({"merged", "archived", "expired", "frozen"}),
        "merged": frozenset({"archived", "expired", "frozen"}),
        "archived": frozenset({"activated", "expired", "frozen"}),
        "frozen": frozenset({"activated", "archived", "expired"}),
        "expired": frozenset(),
    }
)
"""Archived and frozen cubes can be brought back; an expired one can only be deleted or restored from a snapshot."""

HOT: frozenset[State] = frozenset({"generated", "activated"})
"""The states whose cubes are searched and enter prompts."""

SERVING: frozenset[State] = HOT | {"frozen"}
"""The states whose adapters are served: what is frozen keeps its content, and goes on with it."""


def check_transition(old: State, new: State) -> None:
    """Raises Conflict, which names both states, where `new` may not follow `old`."""
    if new not in ALLOWED[old]:
        raise Conflict(f"A memory that is {old} cannot become {new}; it can become {_named(ALLOWED[old])}.")


def _named(states: frozenset[State]) -> str:
    return " or ".join(sorted(states)) or "nothing else"
