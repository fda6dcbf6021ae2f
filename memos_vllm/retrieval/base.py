"""The contract of every search, and the filters that all of them take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from memos_vllm.cube import Header, MemCube, Plaintext
from memos_vllm.errors import BadInput

_HEADER_FILTERS = frozenset(Header.__struct_fields__) - {"metadata", "access", "licence"}


Scored = list[tuple[int, int, float]]
"""`[start, end)` characters of a text with a score above 0; scores of one query compare."""


@dataclass(frozen=True)
class Hit:
    """A cube and how well it matches: above 0, or 0 where it was only the most recent. Scores of one search compare."""

    cube: MemCube
    score: float


class Operator(Protocol):
    """Finds cubes among those that the principal may read: access is part of the search, not a step after it."""

    def search(self, principal: str, query: str, *, top_k: int, filters: Mapping[str, Any] | None = None) -> list[Hit]:
        """At most `top_k` hits, best first, without expired cubes. Raises BadInput, VaultUnavailable."""
        ...

    def sentence_scores(self, query: str, text: str) -> Scored:
        """The sentences of one text that the query is about, in order; cheap enough for every prompt."""
        ...


def matches(cube: MemCube, filters: Mapping[str, Any]) -> bool:
    """Whether a cube has every value asked for; a list asks for any of its values.

    A name is a field of the header (`tags`: holds the tag), else a key of the cube's metadata. Raises BadInput.
    """
    return all(_matches(cube, name, wanted) for name, wanted in filters.items())


def _matches(cube: MemCube, name: str, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        raise BadInput(f"The filter {name!r} must be a value or a list of values.")
    options = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
    if name in _HEADER_FILTERS:
        held = getattr(cube.header, name)
    elif name in cube.header.metadata:
        held = cube.header.metadata[name]
    else:
        return False
    return any(value in options for value in held) if isinstance(held, tuple) else held in options


def text_of(cube: MemCube) -> str:
    """What a search reads of a cube: its text, or else its tags and what it is about."""
    if isinstance(cube.payload, Plaintext):
        return cube.payload.content
    return " ".join((*cube.header.tags, cube.header.fingerprint))
