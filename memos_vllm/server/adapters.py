"""Adapters on their way into the engine: who may use which, its copy, its slot in the workers, and its end.

A request takes a *seat* for its adapter before vLLM sees it, and again in `EngineClient.generate` for as long as the
engine works on it. While somebody sits, and a little longer, the version's copy stays where the workers may read it. A
version that was removed from the registry, or a copy for which there is no room any more, leaves once its seat is
empty: first the worker's slot, then the files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from memos_vllm.activation.identity import ADAPTER_NAME, adapter_name
from memos_vllm.errors import AdapterUnusable, MemosError, NotFound
from memos_vllm.parameter.registry import AdapterRegistry, AdapterVersion
from memos_vllm.parameter.staging import Hold, Stage
from memos_vllm.server import metrics

logger = logging.getLogger(__name__)

EVERY = 2.0
"""Seconds between two looks at what can leave."""
REST = 1.0
"""Seconds that a copy stays after its last use: the engine may hear a little later that a request is over."""
FORGET_AFTER = 600.0
"""Seconds after which an empty seat without a copy is forgotten."""


@dataclass(eq=False)
class Seat:
    """One version of an adapter in one API server. users: requests that need it now; left: when there last were any.

    accepted: whether the engine has loaded it once: its weights never change.
    """

    version: AdapterVersion
    lora: LoRARequest
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    hold: Hold | None = None
    accepted: bool = False
    left: float = field(default_factory=time.time)

    @property
    def busy(self) -> bool:
        return self.users > 0 or self.lock.locked()

    def idle(self) -> float:
        """Seconds since it was last needed."""
        return 0.0 if self.busy else time.time() - self.left


class AdapterDesk:
    """The seats of one API server. Everything runs on its event loop. budget: bytes of copies."""

    def __init__(self, registry: AdapterRegistry, stage: Stage, engine_client: Any, budget: int) -> None:
        self.registry, self.stage, self.budget = registry, stage, budget
        self._engine_client, self._plain_generate = engine_client, engine_client.generate
        self._seats: dict[int, Seat] = {}
        self._leaving: set[int] = set()
        self._revision = -1
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Guard the engine's requests, and clean up in the background, from now on."""
        self._engine_client.generate = self.generate
        self._task = asyncio.get_running_loop().create_task(self._run(), name="memos-adapters")

    async def take(self, version: AdapterVersion) -> Seat:
        """A seat, with the version's copy there and the engine able to run it; `leave` gives it back.

        Raises AdapterUnusable, NotFound.
        """
        seat = self._seats.get(version.int_id)
        if seat is None:
            seat = self._seats[version.int_id] = Seat(version, self._request(version))
        seat.users += 1
        try:
            if seat.hold is None or not seat.accepted or (seat.users == 1 and not self.stage.has(version.int_id)):
                async with seat.lock:
                    await self._prepare(seat)
        except BaseException:
            self.leave(seat)
            raise
        return seat

    def leave(self, seat: Seat) -> None:
        """Give a seat back. Its copy is held on for a while: to lock it anew for every request takes time."""
        seat.users -= 1
        seat.left = time.time()

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncGenerator[Any, None]:
        """vLLM's `generate`; a request with an adapter of ours keeps its seat until its last output."""
        outputs = self._plain_generate(prompt, sampling_params, request_id, **options)
        lora = options.get("lora_request")
        return self._seated(lora, outputs) if lora and lora.lora_name.startswith(ADAPTER_NAME) else outputs

    async def _seated(self, lora: LoRARequest, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Raises AdapterUnusable, NotFound where the version left between its request's check and its start."""
        known = self._seats.get(lora.lora_int_id)
        if known is None:
            raise NotFound("The adapter of this request was removed.")
        seat = await self.take(known.version)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield output
        finally:
            self.leave(seat)

    async def tidy(self) -> None:
        """Let go what was removed from the registry, and what has no room. Raises MemosError, OSError."""
        self._leaving |= await to_thread.run_sync(self._removed)
        self._release(REST)
        copies = await to_thread.run_sync(self.stage.copies)
        excess = sum(copy.bytes for copy in copies) - self.budget
        for copy in copies:
            idle = time.time() - copy.used > REST
            if idle and (excess > 0 or copy.number in self._leaving) and await self._evict(copy.number):
                excess -= copy.bytes
        copied = {copy.number for copy in copies}
        self._leaving &= copied | {number for number, seat in self._seats.items() if seat.busy}
        self._forget_seats(copied)

    def _request(self, version: AdapterVersion) -> LoRARequest:
        name = adapter_name(version.engine_name, version.digest)
        return LoRARequest(name, version.int_id, str(self.stage.path(version.int_id)))

    def _release(self, after: float) -> None:
        """Let copies go that nobody here has needed for so many seconds."""
        for number, seat in self._seats.items():
            if seat.hold is not None and not seat.busy and seat.idle() >= after:
                self.stage.used(number, seat.left)
                seat.hold.release()
                seat.hold = None

    async def _prepare(self, seat: Seat) -> None:
        if seat.hold is None:
            seat.hold = await self._held(seat.version.int_id)
        await self._copy(seat.version)
        if not seat.accepted:
            await self._accept(seat)

    async def _held(self, number: int) -> Hold:
        while (hold := self.stage.hold(number)) is None:  # noqa: ASYNC110 - another process may be removing it
            await asyncio.sleep(0.01)
        return hold

    async def _copy(self, version: AdapterVersion) -> None:
        if not self.stage.has(version.int_id):
            with metrics.adapter_stage_seconds().time():
                await asyncio.to_thread(self.stage.copy, version.int_id, self._filling(version))

    def _filling(self, version: AdapterVersion) -> Callable[[Path], object]:
        def fill(folder: Path) -> None:
            try:
                self.registry.stage(version, folder)
            except AdapterUnusable as error:
                raise AdapterUnusable(f"Adapter {version.served} cannot be run: {error}") from error

        return fill

    async def _accept(self, seat: Seat) -> None:
        """Have the engine load the adapter once, outside of any step: a failure there is an answer, and no more."""
        number = seat.version.int_id
        try:
            with metrics.adapter_load_seconds().time():
                await self._engine_client.add_lora(seat.lora)
        except EngineDeadError:
            raise
        except Exception as error:  # a worker's failures, whatever they were, come as this
            logger.warning("the engine does not take adapter %s: %s", seat.lora.lora_name, error)
            await self._engine_client.remove_lora(number)  # it may be loaded by half
            raise AdapterUnusable(
                f"The engine does not take adapter {seat.version.served}; the server's log says why."
            ) from error
        seat.accepted = True

    def _removed(self) -> set[int]:
        """Versions with a seat that the registry has no more, if it changed since it was last asked."""
        revision = self.registry.revision()
        if revision == self._revision:
            return set()
        self._revision = revision
        versions = [seat.version for seat in [*self._seats.values()]]
        return {version.int_id for version in versions if not self.registry.exists(version)}

    async def _evict(self, number: int) -> bool:
        """Free a version's slot in the workers and remove its copy; False while it is in use anywhere."""
        seat = self._seats.get(number)
        if seat is not None and (seat.busy or seat.hold is not None):
            return False
        taken = self.stage.seize(number)
        if taken is None:
            return False
        try:
            await self._engine_client.remove_lora(number)
            await asyncio.to_thread(self.stage.remove, number)
        finally:
            taken.release()
        metrics.adapter_evictions().inc()
        return True

    def _forget_seats(self, copied: set[int]) -> None:
        for number, seat in [*self._seats.items()]:
            if seat.hold is None and number not in copied and seat.idle() > FORGET_AFTER:
                del self._seats[number]

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(EVERY)
                try:
                    await self.tidy()
                except (MemosError, OSError) as error:
                    logger.warning("copies of adapters are not cleaned up: %s", error)
                except Exception:  # the copies must stay as long as the server does
                    logger.exception("copies of adapters are not cleaned up")
        finally:
            self._release(0.0)
            self.stage.close()
