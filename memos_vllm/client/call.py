"""What every call is: one HTTP request, and how its answer is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias
from typing import Any, Generic, TypeVar

import msgspec

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request. `type`: what the answer's JSON decodes to, or, with `many`, each item of its `results`; `bytes` is
    the answer as it comes.

    files: what is uploaded, as a form with `body` for its fields.
    """

    method: str
    path: str
    type: Any
    user_id: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()
    many: bool = False

    def decode(self, answer: bytes) -> Answer:
        """Raises msgspec.MsgspecError where the answer is not what the API promises."""
        if self.type is bytes:
            return answer  # type: ignore[return-value]
        if self.many:
            answer = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])["results"]
        kind = GenericAlias(list, (self.type,)) if self.many else self.type
        decoded: Answer = msgspec.json.decode(answer, type=kind)
        return decoded


def given(**fields: Any) -> dict[str, Any]:
    """The fields that the caller gave."""
    return {name: value for name, value in fields.items() if value is not None}


def words(values: Iterable[str] | None) -> list[str] | None:
    """The values as a list. Raises TypeError for a text, which would be taken for its letters."""
    if isinstance(values, str):
        raise TypeError(f"give a list of texts, [{values!r}], instead of the text {values!r}")
    return None if values is None else [*values]
