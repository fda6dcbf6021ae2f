"""The months and years that a question names. Finding out what "last summer" means is MemReader's work."""

import calendar
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memos_vllm.vault.lookup import Flags, Rows

_MONTHS = {
    name.casefold(): number
    for names in (calendar.month_name, calendar.month_abbr)
    for number, name in enumerate(names)
    if number
} | {"sept": 9}
_DATE = re.compile(
    r"\b(?:(?P<month>(?i:" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r"))\b\.?"
    r"(?:\s+\d{1,2}(?:st|nd|rd|th)?\b)?,?\s*)?(?P<year>\b(?:19|20)\d\d\b)?"
)


class Month(NamedTuple):
    """A month of a year, a month of any year (`year` 0), or a whole year (`month` 0)."""

    year: int
    month: int


def months_in(query: str) -> list[Month]:
    """What a question names, in order. "may" without a capital is no month."""
    found = []
    for match in _DATE.finditer(query):
        name = match["month"] or ""
        month = 0 if name == "may" else _MONTHS.get(name.casefold(), 0)
        if month or match["year"]:
            found.append(Month(int(match["year"] or 0), month))
    return found


def in_months(rows: Rows, months: Sequence[Month]) -> Flags:
    """Which of a Scope's cubes tell of these months."""
    timely = np.zeros(len(rows), dtype=np.bool_)
    if months:
        since_1970 = rows["happened"].astype("<M8[us]").astype("<M8[M]").astype(np.int64)
        years, numbers = since_1970 // 12 + 1970, since_1970 % 12 + 1
        for year, month in months:
            timely |= ((years == year) | (year == 0)) & ((numbers == month) | (month == 0))
    return timely
