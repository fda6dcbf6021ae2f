"""Times of cubes, which are ISO-8601 text, as Unix seconds."""

from datetime import UTC, datetime

DAY = 86_400.0
"""Seconds."""


def seconds_of(stamp: str) -> float:
    """Unix seconds of a cube's time; of a date alone, those of its beginning, UTC. 0 for ""."""
    if not stamp:
        return 0.0
    moment = datetime.fromisoformat(stamp)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def stamp_of(seconds: float) -> str:
    """The time as cubes hold it: `2025-04-10T12:00:00.000000Z`."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
