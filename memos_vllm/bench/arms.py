"""The ways to serve a prompt with memories that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memos_vllm.config import MemoryConfig

ServerName = Literal["plain", "cached", "memos"]
DEFAULT = MemoryConfig.repair
"""The repair policy of a server that is told nothing."""


@dataclass(frozen=True)
class Arm:
    """One way to serve a prompt.

    warm: order of the memories in the request that filled the prefix cache before, or None for a cold one
    repair: value of the request header `x-memos-repair` on the memos server, "off" for memories as text
    """

    name: str
    server: ServerName
    warm: Literal["same order", "other order"] | None = None
    repair: str = ""

    @property
    def splices(self) -> bool:
        return self.repair not in ("", "off")


FLOOR = Arm("vllm, prefix cache, same order (floor)", "cached", warm="same order")
REORDERED = Arm("vllm, prefix cache, reordered", "cached", warm="other order")
FULL = Arm("memos, spliced, full", "memos", repair="full")
ARMS = (
    Arm("vllm, no prefix cache", "plain"),
    FLOOR,
    REORDERED,
    Arm("memos, text", "memos", repair="off"),
    Arm("memos, spliced, none", "memos", repair="none"),
    Arm("memos, spliced, head:16", "memos", repair="head:16"),
    Arm(f"memos, spliced, {DEFAULT} (default)", "memos", repair=DEFAULT),
    FULL,
)
