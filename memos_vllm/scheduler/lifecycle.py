"""MemLifecycle: what becomes of cubes with time (MemOS paper, section 5.4.2). `vault.states` says what is allowed.

A cube whose `expires` has come becomes expired. A cube that nobody uses fades, as memories do (each recall lengthens
retention: MemoryBank, Zhong et al. 2023), and is archived when it is FAINT:

    strength = 2 ** -(idle / (half_life * LASTING[priority] * (1 + log2(1 + uses))))

`idle` runs from the last use or change, `half_life` is the cube's own or the server's; without one nothing fades.
Pinned and frozen cubes do not. The first use makes a cube activated, and so does a use of one that was archived.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from memos_vllm.cube import MIN_HALF_LIFE, Header, MemCube, Priority, State
from memos_vllm.errors import MemosError, NotFound
from memos_vllm.scheduler.clock import DAY, seconds_of, stamp_of

if TYPE_CHECKING:
    from memos_vllm.vault import Uses, Vault

logger = logging.getLogger(__name__)

ACTOR = "memos-vllm"
"""Who does what the lifecycle does, in audit log and events."""
FAINT = 1 / 16
"""Strength below which a cube is archived: after four half-lives where it was never used."""
LASTING: dict[Priority, float] = {"low": 0.5, "mid": 1.0, "high": 2.0}
"""What a priority does to the half-life; pinned ones do not fade."""
FADING: frozenset[State] = frozenset({"generated", "activated", "merged"})
WAKING: frozenset[State] = frozenset({"generated", "archived"})
"""States that a use ends."""
PAGE = 64
"""Cubes that one step looks at: a few milliseconds."""
CHANGES = 8
"""Cubes that one transaction changes: nobody who writes waits longer than for these."""


@dataclass(frozen=True)
class Step:
    """What one step of a sweep did, in cubes; kv_keys: K/V that went with them, for caches that hold them."""

    seen: int = 0
    expired: int = 0
    archived: int = 0
    kv_keys: Sequence[str] = ()


def strength(header: Header, uses: Uses, now: float, half_life_days: float | None) -> float:
    """How well a cube is remembered at `now` (Unix seconds), from 1 when it was used or changed down to 0.

    half_life_days: of cubes that have none of their own.
    """
    half_life = header.half_life_days or half_life_days
    if half_life is None or header.priority == "pinned":
        return 1.0
    half_life = max(half_life, MIN_HALF_LIFE)
    idle = max(now - max(uses.at, seconds_of(header.updated)), 0.0) / DAY
    return math.exp2(-idle / (half_life * LASTING[header.priority] * (1 + math.log2(1 + uses.count))))


class Lifecycle:
    """Thread-safe. Steps are small, so that whoever runs them can rest between them. All methods raise MemosError."""

    def __init__(self, vault: Vault, *, half_life_days: float | None = None) -> None:
        self.vault = vault
        self.half_life_days = half_life_days

    def expire(self, now: float) -> Iterator[Step]:
        """Expire what is due at `now` (Unix seconds), step by step. It costs what is due, however large the vault."""
        at, after = stamp_of(now), None
        while due := self.vault.due(at, limit=CHANGES, after=after):
            after = due[-1]
            expired = self._change([cube.id for cube in due], "expired", lambda cube, _: cube.expired(at))
            yield Step(len(due), expired=len(expired), kv_keys=drop_kv_of(self.vault, expired))

    def fade(self, now: float) -> Iterator[Step]:
        """Archive what has faded, step by step. It looks at every cube of the vault."""
        after = ""
        while page := self.vault.walk(after=after, limit=PAGE):
            after = page[-1].id
            yield Step(len(page))
            faint = iter(self._faint(page, now))
            while some := list(islice(faint, CHANGES)):
                archived = self._change(some, "archived", lambda cube, uses: self._is_faint(cube, uses, now))
                yield Step(archived=len(archived), kv_keys=drop_kv_of(self.vault, archived))

    def activate(self, cube_ids: Iterable[str]) -> int:
        """Cubes were used: those that were generated or archived are activated; how many."""
        held = (self._held(cube_id) for cube_id in cube_ids)
        sleeping = (cube.id for cube in held if cube and cube.header.state in WAKING)
        count = 0
        while some := list(islice(sleeping, CHANGES)):
            count += len(self._change(some, "activated", lambda cube, _: cube.header.state in WAKING))
        return count

    def _faint(self, cubes: Iterable[MemCube], now: float) -> list[str]:
        """Ids of those among the cubes that are to be archived."""
        fading = [cube for cube in cubes if cube.header.state in FADING and self._fades(cube.header)]
        uses = self.vault.uses_of([cube.id for cube in fading])
        return [cube.id for cube in fading if self._is_faint(cube, uses[cube.id], now)]

    def _fades(self, header: Header) -> bool:
        return header.priority != "pinned" and (header.half_life_days or self.half_life_days) is not None

    def _is_faint(self, cube: MemCube, uses: Uses, now: float) -> bool:
        return cube.header.state in FADING and strength(cube.header, uses, now, self.half_life_days) < FAINT

    def _change(self, cube_ids: Sequence[str], state: State, still: Callable[[MemCube, Uses], bool]) -> list[MemCube]:
        """Bring cubes into another state; where that fails for one of them, the others do not wait for it.

        still: asked in the transaction, since their owner may have changed them meanwhile.
        """
        try:
            return self.vault.transition_all(cube_ids, state, actor=ACTOR, only_if=still)
        except MemosError as error:
            if len(cube_ids) == 1:
                logger.warning("memory %s does not become %s for now: %s", cube_ids[0], state, error)
                return []
        return [cube for cube_id in cube_ids for cube in self._change([cube_id], state, still)]

    def _held(self, cube_id: str) -> MemCube | None:
        try:
            return self.vault.get(cube_id)
        except NotFound:
            return None


def drop_kv_of(vault: Vault, cubes: Iterable[MemCube]) -> list[str]:
    """Drop the K/V of cubes that enter no prompts any more; their text stays. Returns the keys that are gone."""
    keys = [record.key for cube in cubes for record in vault.kv_of(cube.id)]
    return [key for key in keys if vault.drop_kv(key) is not None]
