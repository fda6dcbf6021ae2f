"""Who becomes K/V on this server: the cost model with its measured figures, the policy's share, the uses so far."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from memos_vllm.activation.repair import Placed, RepairPolicy
from memos_vllm.cube import MemCube
from memos_vllm.scheduler.promotion import Candidate, CostModel, Mode, Verdict, judge
from memos_vllm.server import metrics
from memos_vllm.server.private import PrivateRequests
from memos_vllm.server.uses import UseBook

logger = logging.getLogger(__name__)

SHORT, LONG = 32, 256
"""Tokens of the two prefills that are timed at start."""


class Promoter:
    """Thread-safe: the model is replaced, never changed."""

    def __init__(self, mode: Mode, policy: RepairPolicy, uses: UseBook, bytes_per_token: int) -> None:
        self.mode, self.policy, self.uses = mode, policy, uses
        self.model = CostModel(bytes_per_token=bytes_per_token)
        self.loads = (0.0, 0.0, 0.0)

    async def measure(self, requests: PrivateRequests, token_ids: Sequence[int]) -> None:
        """Time two private prefills of what `token_ids` repeated gives; the first request of all is not counted."""
        long = min(LONG, requests.max_tokens)
        short = min(SHORT, long // 2)
        ids = [*token_ids] * (long // max(len(token_ids), 1) + 1) if token_ids else [0] * long
        await requests.seconds(ids[:short])
        seconds = [await requests.seconds(ids[:tokens]) for tokens in (short, long)]
        self.model = self.model.measured(short=(short, seconds[0]), long=(long, seconds[1]))
        logger.info("memory: a prefill of %d tokens takes %.0f ms", long, seconds[1] * 1e3)

    def learn(self) -> None:
        """Take in how long the engine's splices took since the last call."""
        before, self.loads = self.loads, metrics.engine_loads()
        nbytes, seconds, splices = (now - then for now, then in zip(self.loads, before, strict=True))
        self.model = self.model.loaded(nbytes, seconds, splices)

    def verdicts(self, cubes: Sequence[MemCube], tokens: Sequence[int], scaffold: int) -> list[Verdict]:
        """What becomes of cubes of so many tokens behind a scaffold of so many. Raises VaultUnavailable."""
        heats = self.uses.heats([cube.id for cube in cubes]) if self.mode == "auto" else {}
        return [
            self.verdict(count, scaffold, heats.get(cube.id, 0.0), pinned=cube.header.priority == "pinned")
            for cube, count in zip(cubes, tokens, strict=True)
        ]

    def verdict(self, tokens: int, scaffold: int, heat: float, *, pinned: bool = False) -> Verdict:
        spans = self.policy.spans([Placed(scaffold + 1, tokens)])
        repaired = sum(end - start for start, end in spans)
        return judge(Candidate(tokens, repaired, scaffold, heat, pinned), self.model, self.mode)
