"""The contract of every search, and the filters that all of them take."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memos_vllm.cube import Header, MemCube, SemanticType, timestamp
from memos_vllm.errors import BadInput

_HEADER_FILTERS = frozenset(Header.__struct_fields__) - {"metadata", "access", "licence"}


SIGNALS = ("lexical", "dense", "neighbours", "hints")
"""What a search goes by: words; meaning, where there is an embedder; what the turns around a turn tell; and hints: a
speaker or a month that the question names, texts that ask or are short."""

MAX_BITS = 64
"""Of an integer in metadata."""

Scored = list[tuple[int, int, float]]
"""`[start, end)` characters of a text with a score above 0; scores of one query compare."""


@dataclass(frozen=True)
class TimeWindow:
    """From `start` until before `end`: ISO-8601 dates or times, UTC; "" for no bound.

    What a cube tells happened at `happened`, or else when it was created.
    """

    start: str = ""
    end: str = ""

    def __post_init__(self) -> None:
        """Raises BadInput."""
        for name in ("start", "end"):
            timestamp(getattr(self, name), f"window {name}")


@dataclass(frozen=True)
class Hit:
    """A cube and how well it matches: above 0, or 0 where it was only the most recent. Scores of one search compare.

    parts: what the score is made of, by signal.
    """

    cube: MemCube
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Operator(Protocol):
    """Finds cubes among those that the principals may read: access is part of the search, not a step after it."""

    def search(
        self,
        principals: str | Sequence[str],
        query: str,
        *,
        top_k: int,
        filters: Mapping[str, Any] | None = None,
        window: TimeWindow | None = None,
        types: Sequence[SemanticType] | None = None,
        tags: Sequence[Sequence[str]] = (),
        neighbours: bool = True,
        using: Collection[str] | None = None,
        clearance: Collection[str] | None = None,
    ) -> list[Hit]:
        """At most `top_k` hits, best first, without expired cubes.

        principals: whom the caller speaks for, a user and their groups.
        filters: see `matches`; window: when it happened; types: any of these; tags: any of each list.
        neighbours: whether a turn also counts for the turns around it in its conversation.
        using: the signals that decide (see SIGNALS), all that there are by default.
        clearance: the sensitivity tags that the caller may read, None for all; what has another is not there for them,
        in no score and for no neighbour.
        Raises BadInput, VaultUnavailable.
        """
        ...

    def sentence_scores(self, query: str, text: str) -> Scored:
        """The sentences of one text that the query is about, in order; cheap enough for every prompt."""
        ...


def matches(cube: MemCube, filters: Mapping[str, Any]) -> bool:
    """Whether a cube has every value asked for; a list asks for any of its values.

    A name is a field of the header (`tags`: holds the tag), else a key of the cube's metadata.
    """
    return all(_matches(cube, name, options_of(wanted)) for name, wanted in filters.items())


def tagged(cube: MemCube, tags: Sequence[Sequence[str]]) -> bool:
    """Whether a cube has any tag of each list."""
    return all(not set(options).isdisjoint(cube.header.tags) for options in tags)


def checked_filters(filters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The filters themselves. Raises BadInput where one is no value or list of values, or too large a number."""
    for name, wanted in filters.items():
        options = options_of(wanted)
        if any(isinstance(option, Mapping | list | tuple) for option in options):
            raise BadInput(f"The filter {name!r} must be a value or a list of values.")
        if any(isinstance(option, int) and option.bit_length() > MAX_BITS for option in options):
            raise BadInput(f"The filter {name!r} asks for a number of more than {MAX_BITS} bits.")
    return filters


def options_of(wanted: Any) -> Sequence[Any]:
    """The values that a filter allows."""
    return [*wanted] if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)


def is_field(name: str) -> bool:
    """Whether a filter asks for a field of the header rather than for metadata."""
    return name in _HEADER_FILTERS


def _matches(cube: MemCube, name: str, options: Sequence[Any]) -> bool:
    if is_field(name):
        held = getattr(cube.header, name)
    elif name in cube.header.metadata:
        held = cube.header.metadata[name]
    else:
        return False
    return any(value in options for value in held) if isinstance(held, tuple) else held in options
