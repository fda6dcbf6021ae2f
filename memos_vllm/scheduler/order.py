"""The order of memories in the prompts of a conversation.

vLLM's prefix cache reuses a prompt as far as it equals an earlier one. What stood in the turn before keeps its place:

    turn 1   a c d          ids sort
    turn 2   a c d b e      new ones come behind, in id order
    turn 3   a   d b e f    c left: the common prefix ends there and nowhere else
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from memos_vllm.cube import MemCube

MAX_TURNS = 20_000
"""Turns that are remembered; those of conversations that rested longest are dropped first."""


def placed(cubes: Sequence[MemCube], places: Mapping[str, int]) -> list[MemCube]:
    """The cubes in prompt order. places: those of the cubes of the turn before, by id; empty at a beginning."""
    return sorted(cubes, key=lambda cube: (places.get(cube.id, len(places)), cube.id))


class Turns:
    """Which cubes the turns of running conversations were given. Thread-safe.

    In the memory of this API server: after a restart, or on another server, a conversation's prompt is in id order
    again, which costs one prefill and changes no answer.
    """

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self._max_turns = max_turns
        self._turns: OrderedDict[bytes, tuple[str, tuple[str, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def before(self, keys: Sequence[bytes]) -> tuple[str, ...]:
        """The cubes of the newest turn that is known. keys: of the conversation's turns, oldest first.

        The last key is the current turn's, which is known where the request is a repetition.
        """
        with self._lock:
            for key in reversed(keys):
                if key in self._turns:
                    self._turns.move_to_end(key)
                    return self._turns[key][1]
        return ()

    def note(self, key: bytes, user: str, cube_ids: Sequence[str]) -> None:
        """A turn was given these cubes, in this order."""
        with self._lock:
            self._turns[key] = (user, tuple(cube_ids))
            self._turns.move_to_end(key)
            while len(self._turns) > self._max_turns:
                self._turns.popitem(last=False)

    def forget(self, user: str) -> None:
        """Drop what is known of a user's conversations."""
        with self._lock:
            for key in [key for key, (owner, _) in self._turns.items() if owner == user]:
                del self._turns[key]
