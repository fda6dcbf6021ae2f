"""How work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str, int, int], None]
"""What is done now, how many of it are done, and of how many (0: not known). May raise to stop the work."""


def no_tell(what: str, done: int, total: int) -> None:
    """For work that nobody watches."""


def counted(tell: Tell, what: str, total: int) -> Callable[[int], None]:
    """Tells of `total` things as they get done, told how many more each time."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        tell(what, done, total)

    tell(what, 0, total)
    return more
