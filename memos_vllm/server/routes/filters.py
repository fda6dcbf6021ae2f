"""What a search request asks for, in the words of the operator.

mem0's filter language is understood as far as it names values that a memory must have: `AND`, `OR` over one field,
`in`, `eq`, ranges of `created_at`, `metadata`, `categories`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from memos_vllm.cube import MemCube, SemanticType, timestamp
from memos_vllm.errors import BadInput
from memos_vllm.retrieval.base import TimeWindow, checked_filters, matches, tagged
from memos_vllm.server.mem0_door import MAX_DEPTH
from memos_vllm.server.schemas import SearchRequest
from memos_vllm.vault.postings import micros

_RANGES = ("gte", "gt", "lte", "lt")
_TIMES = ("created_at", "happened", "timestamp")


@dataclass
class Wanted:
    """Keyword arguments of `Operator.search`, without the query and how many. tags: any of each list."""

    filters: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    end: str = ""
    types: list[SemanticType] | None = None
    tags: list[list[str]] = field(default_factory=list)
    neighbours: bool = True
    using: list[str] | None = None

    def options(self) -> dict[str, Any]:
        window = TimeWindow(self.start, self.end) if self.start or self.end else None
        options = {"filters": self.filters, "window": window, "types": self.types, "tags": self.tags}
        return {
            **{name: value for name, value in options.items() if value},
            **({} if self.neighbours else {"neighbours": False}),
            **({} if self.using is None else {"using": self.using}),
        }

    def lets_through(self, cube: MemCube) -> bool:
        """Whether a cube has what is asked for: what a search checks, for a list without a query."""
        told = micros(cube.header.happened or cube.header.created)
        return (
            matches(cube, checked_filters(self.filters))
            and tagged(cube, self.tags)
            and (not self.types or cube.header.semantic_type in self.types)
            and (not self.start or told >= micros(self.start))
            and (not self.end or told < micros(self.end))
        )

    def require(self, name: str, value: Any) -> None:
        """Add one condition. Raises BadInput where it contradicts another."""
        if name in ("categories", "tags"):
            self.tags.append([str(tag) for tag in (value if isinstance(value, list) else [value])])
        elif self.filters.setdefault(name, value) != value:
            raise BadInput(f"The filter {name!r} asks for two different values; ask for one, or for a list.")


def query_of(body: SearchRequest) -> Wanted:
    """The search that a request asks for. Raises BadInput, which names what is not understood."""
    wanted = Wanted(
        start=timestamp(body.since, "since"),
        end=timestamp(body.until, "until"),
        types=body.types,
        tags=[body.tags] if body.tags else [],
        neighbours=body.neighbours,
        using=body.using,
    )
    for name, value in _conditions(body.filters or {}):
        _apply(wanted, name, value)
    for name in ("agent_id", "run_id"):
        if (value := getattr(body, name)) is not None:
            wanted.require(name, value)
    return wanted


def _conditions(filters: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The conditions that must all hold. `user_id` says who is asking and is none of them."""
    if depth > MAX_DEPTH:
        raise BadInput(f"The filters are nested more than {MAX_DEPTH} levels deep.")
    for name, value in filters.items():
        if name in ("AND", "and"):
            for item in _list_of_conditions(name, value):
                yield from _conditions(item, depth + 1)
        elif name in ("OR", "or"):
            yield _either(_list_of_conditions(name, value))
        elif name in ("NOT", "not"):
            raise BadInput("The filter NOT is not supported; ask for the values that are wanted.")
        elif name == "metadata" and isinstance(value, Mapping):
            yield from value.items()
        elif name != "user_id" and value not in ("*", None):
            yield name, value


def _list_of_conditions(name: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise BadInput(f"The filter {name} takes a list of filters.")
    return value


def _either(items: list[Mapping[str, Any]]) -> tuple[str, list[Any]]:
    names = {name for item in items for name in item}
    if len(names) != 1 or "user_id" in names or any(isinstance(item[name], Mapping) for item in items for name in item):
        raise BadInput("The filter OR is supported over values of one field only.")
    (name,) = names
    values = [item[name] for item in items]
    return name, [value for item in values for value in (item if isinstance(item, list) else [item])]


def _apply(wanted: Wanted, name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        wanted.require(name, value)
        return
    for operator, operand in value.items():
        if operator in ("eq", "in", "contains") and (operator != "contains" or name in ("categories", "tags")):
            wanted.require(name, operand)
        elif operator in _RANGES and name in _TIMES:
            _bound(wanted, operator, operand)
        else:
            raise BadInput(f"The filter {name!r} has the operator {str(operator)[:32]!r}, which is not supported.")


def _bound(wanted: Wanted, operator: str, operand: Any) -> None:
    """Narrow the time window; its start is in it, its end is not."""
    if not isinstance(operand, str):
        raise BadInput("A time in a filter is ISO-8601 text.")
    value = timestamp(operand, operator)
    value = _next(value) if operator in ("gt", "lte") else value
    if operator in ("gte", "gt"):
        wanted.start = max(wanted.start, value)
    else:
        wanted.end = min(wanted.end, value) if wanted.end else value


def _next(value: str) -> str:
    """The next day of a date, the next microsecond of a time."""
    try:
        if len(value) == 10:
            return (date.fromisoformat(value) + timedelta(days=1)).isoformat()
        return timestamp((datetime.fromisoformat(value) + timedelta(microseconds=1)).isoformat(), "filter")
    except OverflowError as error:
        raise BadInput(f"The time {value!r} in a filter is out of range.") from error
