"""Consolidation: which memories an adapter should know, so that prompts can do without their text.

A memory is worth learning when it is *stable*, unchanged for STABLE_DAYS and meant to last, and *often used*: in OFTEN
prompts a day, and in LEAST_USES so far. Decayed uses (`vault.Uses`) of a steady rate settle at rate * half-life / ln 2:

    uses a day          u = heat * ln 2 / half-life
    saved tokens a day  u * tokens of the memory, summed over those that are learned
    saved of a request  that, over the u of the memory that is used most

since a prompt holds a memory once at most, so that there are at least so many prompts. What is known stays known down
to a part of OFTEN: an adapter is not made anew because somebody spoke of something else for a day.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memos_vllm.cube import MemCube, Plaintext
from memos_vllm.scheduler.clock import DAY, seconds_of
from memos_vllm.vault.records import USE_HALF_LIFE, Uses

if TYPE_CHECKING:
    from memos_vllm.vault import Vault

STABLE_DAYS = 3.0
OFTEN = 1.0
"""Uses a day from which on a memory is learned."""
STAYS = 0.25
"""Part of OFTEN down to which one that is known stays so."""
LEAST_USES = 5
"""Uses, ever: one busy day is no habit."""
LEAST_SAVED = 32.0
"""Prompt tokens of a request, beyond those that are saved already, for which a training is worth its time."""
MOST = 200
"""Memories of one adapter; those that save most are taken."""
PAGE = 64
"""Memories that one step looks at."""
MOST_LOOKED_AT = 20_000
"""Memories of an owner that are looked at, the oldest first."""


@dataclass(frozen=True)
class Candidate:
    """A memory of an owner, looked at. changed: Unix seconds; lasting: see `lasts`; tokens: in a prompt.

    known: whether the adapter that answers now does so for it.
    """

    id: str
    version: int
    tokens: int
    changed: float
    uses: Uses
    lasting: bool = True
    known: bool = False

    @property
    def source(self) -> str:
        return f"{self.id}@{self.version}"

    def rate(self, now: float) -> float:
        """Uses a day, as of late."""
        return rate_of(self.uses, now)


@dataclass(frozen=True)
class Learn:
    """A memory that is to be learned. rate: uses a day; saves: prompt tokens a day."""

    candidate: Candidate
    rate: float
    saves: float
    why: str


@dataclass(frozen=True)
class Proposal:
    """What an adapter should know, in the order of ids. Tokens are those of prompts.

    saved: of a request, by all of it; gained: of a request, by what the adapter that answers now does not know
    saved_a_day: by all of it; lost: sources that this adapter was made of and that are not as they were
    """

    learn: tuple[Learn, ...] = ()
    saved: float = 0.0
    gained: float = 0.0
    saved_a_day: float = 0.0
    lost: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(one.candidate.source for one in self.learn)

    @property
    def worth(self) -> bool:
        """Whether a training pays: by what is not saved yet, or by what is lost together with a memory that changed."""
        return self.gained >= LEAST_SAVED or (bool(self.lost) and self.saved >= LEAST_SAVED)


def rate_of(uses: Uses, now: float) -> float:
    """Uses a day, as of late."""
    return uses.heat_at(now) * math.log(2) * DAY / USE_HALF_LIFE


def lasts(cube: MemCube) -> bool:
    """Whether a memory may outlast its own row in an adapter: a text in use, not delicate, without an end."""
    header, payload = cube.header, cube.payload
    plain = isinstance(payload, Plaintext) and payload.format == "text" and header.namespace == "user"
    return plain and header.state == "activated" and not header.sensitivity and not header.expires


def judged(candidate: Candidate, now: float) -> Learn | None:
    """Why a memory is worth learning; None where it is not."""
    rate, days = candidate.rate(now), (now - candidate.changed) / DAY
    enough = rate >= (OFTEN * STAYS if candidate.known else OFTEN) and candidate.uses.count >= LEAST_USES
    if not (candidate.lasting and enough and days >= STABLE_DAYS):
        return None
    why = f"used {rate:.1f} times a day, unchanged for {days:.0f} days"
    return Learn(candidate, rate, rate * candidate.tokens, f"{why}; known already" if candidate.known else why)


@dataclass
class Look:
    """A look at an owner's memories, one after another. It holds MOST of them at a time.

    now: Unix seconds; made_of: the sources of the adapter that answers now.
    """

    now: float
    made_of: Collection[str] = ()
    _best: list[tuple[float, str, Learn]] = field(default_factory=list)
    _top: float = 0.0
    _kept: set[str] = field(default_factory=set)

    def add(self, candidate: Candidate) -> None:
        self._top = max(self._top, candidate.rate(self.now))
        if candidate.lasting and candidate.source in self.made_of:
            self._kept.add(candidate.source)
        if learn := judged(candidate, self.now):
            heapq.heappush(self._best, (learn.saves, candidate.id, learn))
            if len(self._best) > MOST:
                heapq.heappop(self._best)

    def proposal(self) -> Proposal:
        """What the memories come to that were looked at so far."""
        learn = sorted((one for *_, one in self._best), key=lambda one: one.candidate.id)
        saved = sum(one.saves for one in learn)
        new = sum(one.saves for one in learn if not one.candidate.known)
        return Proposal(
            learn=tuple(learn),
            saved=saved / self._top if saved else 0.0,
            gained=new / self._top if new else 0.0,
            saved_a_day=saved,
            lost=tuple(sorted({*self.made_of} - self._kept)),
        )


def look(
    vault: Vault,
    owner: str,
    now: float,
    *,
    uses: Callable[[Collection[str]], Mapping[str, Uses]],
    count_tokens: Callable[[MemCube], int],
    made_of: Collection[str] = (),
    known: Collection[str] = (),
) -> Iterator[Look]:
    """Look at an owner's memories, a page in each step; the same Look each time. Raises MemosError.

    known: the sources that the adapter answers for, among those that it was `made_of`.
    """
    looked, after, seen = Look(now, made_of), "", 0
    while seen < MOST_LOOKED_AT and (page := vault.list(owner, limit=PAGE, after=after)):
        after, seen = page[-1].id, seen + len(page)
        used = uses([cube.id for cube in page])
        for cube in page:
            looked.add(_candidate(cube, used.get(cube.id, Uses()), now, count_tokens, known))
        yield looked
    yield looked


def _candidate(
    cube: MemCube, uses: Uses, now: float, count_tokens: Callable[[MemCube], int], known: Collection[str]
) -> Candidate:
    """Tokens are counted of those alone that may be worth it: it takes longer than the rest."""
    lasting = lasts(cube)
    counts = lasting and rate_of(uses, now) >= OFTEN * STAYS
    return Candidate(
        id=cube.id,
        version=cube.version,
        tokens=count_tokens(cube) if counts else 0,
        changed=seconds_of(cube.header.updated),
        uses=uses,
        lasting=lasting,
        known=f"{cube.id}@{cube.version}" in known,
    )
