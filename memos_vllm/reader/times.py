"""Time expressions in English texts, resolved against the date of the message that holds them.

Finding them is done here: dateparser's own search takes words such as "may" and bare numbers for dates. Resolving what
was found is dateparser's.
"""

from __future__ import annotations

import re
import threading
from calendar import monthrange
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

from dateparser.date import DateDataParser

from memos_vllm.retrieval.base import TimeWindow

Tense = Literal["past", "future"]

_MONTHS = (
    "january|february|march|april|may|june|july|august|september|october|november|december|"
    "jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec"
)
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_UNITS = "day|week|month|year"
_NUMBER = r"\d{1,3}|(?:a\s+)?couple\s+of|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_ORDINAL = r"\d{1,2}(?:st|nd|rd|th)?"
_YEAR = r"(?:19|20)\d\d"

_EXPRESSION = re.compile(
    rf"""\b(?:
      (?P<iso>{_YEAR}-\d\d-\d\d)
    | (?P<full>(?:the\s+)?{_ORDINAL}\s+(?:of\s+)?(?:{_MONTHS})\.?(?:,?\s+{_YEAR})?
             |(?:{_MONTHS})\.?\s+{_ORDINAL}\b(?:,?\s+{_YEAR})?)
    | (?P<month>(?:{_MONTHS})\.?,?\s+{_YEAR})
    | (?P<near>(?:the\s+)?day\s+before\s+yesterday|(?:the\s+)?day\s+after\s+tomorrow|yesterday|today|tomorrow|tonight
             |last\s+night|this\s+(?:morning|afternoon|evening))
    | (?P<ago>(?:{_NUMBER})\s+(?:{_UNITS})s?\s+(?:ago|from\s+now))
    | (?P<ahead>in\s+(?:{_NUMBER})\s+(?:{_UNITS})s?\b(?!\s+of))
    | (?P<weekend>(?:last|next|this|past|coming)\s+weekend)
    | (?P<step>(?:last|next|this|past|previous|coming)\s+(?:{_UNITS}|{_DAYS}))
    | (?P<named>(?:last|next|this|in|since|until|by|during|before|after|early|late|mid)\s+(?:{_MONTHS})
             (?:,?\s+{_YEAR})?)
    | (?P<weekday>(?:on\s+)?(?:{_DAYS}))
    | (?P<year>(?:in|since|during|before|after|until|by|of|year)\s+{_YEAR})
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
_COUPLE = re.compile(r"\b(?:a\s+)?couple\s+of\b", re.IGNORECASE)
_RELATION = re.compile(r"^(?:the|on|in|since|until|by|during|before|after|early|late|mid|of|year)\s+", re.IGNORECASE)
_TOLD = re.compile(
    r"\b(?:was|were|had|did|been|went|saw|met|bought|got|took|made|came|ate|ran|found|told|said|left|felt|flew|drove|wrote|"
    r"won|lost|broke|began|became|gave|kept|spoke|sent|spent|slept|swam|sang|taught|built|\w{2,}ed)\b|\w['’]d\b",
    re.IGNORECASE,
)
_COMING = re.compile(r"\b(?:will|won['’]t|going to|gonna|plan(?:s|ning|ned)? to|about to)\b|['’]ll\b", re.IGNORECASE)
_AFTER = re.compile(r"\b(?:since|after|from)\s*(?:the\s+)?$|^(?:since|after)\b", re.IGNORECASE)
_BEFORE = re.compile(r"\b(?:before|until|till|by)\s*(?:the\s+)?$|^(?:before|until|by)\b", re.IGNORECASE)
MAX_TEXT = 4096
"""Characters of a text in which time expressions are looked for."""
MAX_MOMENTS = 16
"""Time expressions of a text that are resolved: each costs dateparser a millisecond."""


class Moment(NamedTuple):
    """A time expression: its place in the text, and the days `[first, after)` that it means."""

    start: int
    end: int
    first: date
    after: date


def moments(text: str, at: datetime) -> list[Moment]:
    """The time expressions of a text sent at `at` that can be resolved, in order, of the first MAX_MOMENTS.

    A bare "Friday" or "in May" is the last one where the text tells of the past, else the next.
    """
    tense: Tense = "past" if _TOLD.search(text, 0, MAX_TEXT) and not _COMING.search(text, 0, MAX_TEXT) else "future"
    found = []
    for match in islice(_EXPRESSION.finditer(text, 0, MAX_TEXT), MAX_MOMENTS):
        days = _days(match, at.date(), tense)
        if days is not None:
            found.append(Moment(*match.span(), *days))
    return found


def happened(text: str, at: datetime) -> str:
    """The date of what a text tells: its first time expression, else the date it was sent."""
    found = moments(text, at)
    return (found[0].first if found else at.date()).isoformat()


def window_of(text: str, at: datetime) -> TimeWindow | None:
    """The time that a question is about: "last week" a week, "since May" what is after; None where it names none."""
    found = moments(text, at)
    if not found:
        return None
    first, last = found[0], found[-1]
    if len(found) == 1:
        phrase = text[first.start : first.end]
        if _AFTER.search(text[: first.start]) or _AFTER.search(phrase):
            return TimeWindow(start=(first.after if "after" in phrase.lower() else first.first).isoformat())
        if _BEFORE.search(text[: first.start]) or _BEFORE.search(phrase):
            return TimeWindow(end=first.first.isoformat())
    return TimeWindow(min(first.first, last.first).isoformat(), max(first.after, last.after).isoformat())


def _days(match: re.Match[str], today: date, tense: Tense) -> tuple[date, date] | None:
    """The days `[first, after)` that an expression means; None where there is no such date."""
    try:
        return _meant(match, today, tense)
    except (ValueError, OverflowError):  # the 31st of June, 999 years ago, "last May" in the year 1
        return None


def _meant(match: re.Match[str], today: date, tense: Tense) -> tuple[date, date] | None:
    """Raises ValueError, OverflowError where there is no such date."""
    phrase = _COUPLE.sub("2", match.group().lower())
    if match["weekend"]:
        saturday = _resolved(phrase.replace("weekend", "saturday").replace("this", "next"), today, tense)
        return (saturday[0], saturday[0] + timedelta(days=2)) if saturday else None
    if match["step"]:
        phrase = phrase.replace("past", "last").replace("previous", "last").replace("coming", "next")
        if phrase.startswith("this ") and phrase[5:] not in _UNITS:
            phrase, tense = phrase[5:], "future"
    if match["named"] and phrase.startswith("last "):  # in March, "last March" is a year ago
        return _resolved(phrase[5:], today.replace(day=1) - timedelta(days=1), "past")
    if match["named"] and phrase.startswith("next "):
        tense, phrase = "future", phrase[5:]
    elif match["named"] and phrase.startswith("since "):
        phrase, tense = phrase[6:], "past"
    elif match["named"] or match["year"] or match["weekday"] or match["full"]:
        phrase = _RELATION.sub("", phrase.removeprefix("this "))
    return _resolved(phrase, today, tense)


@lru_cache(maxsize=8)
def _parser(today: date, tense: Tense) -> DateDataParser:
    settings = {
        "RELATIVE_BASE": datetime.combine(today, time(12)),
        "PREFER_DATES_FROM": tense,
        "PREFER_DAY_OF_MONTH": "first",
        "PREFER_MONTH_OF_YEAR": "first",
        "TIMEZONE": "UTC",
        "RETURN_AS_TIMEZONE_AWARE": False,
    }
    return DateDataParser(languages=["en"], settings=settings)


_lock = threading.Lock()  # a DateDataParser keeps state between calls


def _resolved(phrase: str, today: date, tense: Tense) -> tuple[date, date] | None:
    with _lock:
        data = _parser(today, tense).get_date_data(phrase)
    return _span(data.date_obj.date(), data.period or "day") if data.date_obj else None


def _span(day: date, period: str) -> tuple[date, date]:
    match period:
        case "week":
            monday = day - timedelta(days=day.weekday())
            return monday, monday + timedelta(days=7)
        case "month":
            first = day.replace(day=1)
            return first, first + timedelta(days=monthrange(day.year, day.month)[1])
        case "year":
            return date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day, day + timedelta(days=1)
