"""The connector's worker half: splices KV cubes into this rank's paged blocks and captures cubes out of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from memos_kernels.capture import capture
from memos_kernels.layout import Layout
from memos_kernels.rotation import Rotation
from memos_kernels.splice import rotate, splice
from vllm.logger import init_logger

from memos_vllm.activation.files import KVLabel, deviation_path, write_deviation
from memos_vllm.activation.payload import KVCube
from memos_vllm.activation.repair.deviation import deviation, pack
from memos_vllm.activation.store import KVStore
from memos_vllm.engine.messages import Capture, Compare, Fetch, Load, RequestWork, StepNews, StepWork, Tally
from memos_vllm.engine.metrics import MemosStats
from memos_vllm.errors import KVUnusable

logger = init_logger("vllm.memos.worker")

UNUSABLE = (KVUnusable, OSError, RuntimeError, ValueError, IndexError)
"""What a cube that does not fit, or a machine without memory for it, may raise: a request can do without the cube."""
FETCH_PAUSE = 0.0005
"""Seconds that a step without tokens waits for a file: there is nothing else to be done, and the cores are free."""


class WorkerHalf:
    """Lives in each tensor-parallel worker; all methods run on its forward thread, files are read and written on the
    store's own.

    identity: digest of the engine's `KVIdentity`; shape: of this rank's k, `[layers, any, kv_heads, head_dim]`
    rotation: how the model turns its keys
    """

    def __init__(self, store: KVStore, identity: str, shape: tuple[int, int, int, int], rotation: Rotation) -> None:
        self.store, self.identity, self.shape, self.rotation = store, identity, shape, rotation
        self.caches: list[torch.Tensor] = []
        self.layout: Layout | None = None
        self.block_size = 0
        self.failed_blocks: set[int] = set()
        self.news = StepNews()
        self.stats = MemosStats()
        self.comparer = ThreadPoolExecutor(1, thread_name_prefix="memos-kv-comparer")

    def register(self, caches: dict[str, torch.Tensor], layout: Layout) -> None:
        """Take the layers' caches, `[num_blocks, kv_heads, block_size, 2 * head_dim]` each, in layer order."""
        self.caches, self.layout = list(caches.values()), layout
        self.block_size = self.caches[0].shape[2]

    def begin(self, work: StepWork) -> None:
        """What comes before the forward: let cubes go, begin to fetch others, splice the step's loads."""
        for key in work.drops:
            self.store.drop(key)
        for fetch in work.fetches:
            self._fetch(fetch)
        for request in work.loads:
            began = time.perf_counter()
            for load in request.loads:
                self._load(request, load)
            self.stats.time("load_seconds", time.perf_counter() - began)

    def _fetch(self, fetch: Fetch) -> None:
        layers, _, heads, head_dim = self.shape
        label = self._label(fetch.key, fetch.tokens)
        self.store.fetch(fetch.key, label, (layers, fetch.length, heads, head_dim))

    def _label(self, key: str, tokens: str) -> KVLabel:
        return KVLabel(key, self.identity, tokens)

    def _load(self, request: RequestWork, load: Load) -> None:
        """Splice one cube; if that fails, whatever the cause, its blocks are marked for recomputation."""
        try:
            self._splice(request, load)
        except UNUSABLE as error:
            logger.warning("tokens %d to %d of a request are recomputed: %s", load.start, load.end, error)
            self.stats.add("failures", "load")
            self.news.failed.add(request.request_id)
            first, last = load.start // self.block_size, (load.end - 1) // self.block_size
            self.failed_blocks.update(request.block_ids[first : last + 1])

    def _splice(self, request: RequestWork, load: Load) -> None:
        assert self.layout is not None
        cube = self.store.get(load.key, self._label(load.key, load.tokens))
        if cube is None:
            raise KVUnusable(f"the KV cube {load.key} is not in RAM")
        rows = slice(load.start - load.cube_start, load.end - load.cube_start)
        delta = load.cube_start - cube.origin
        table = torch.tensor(request.block_ids, device=self.caches[0].device)
        k, v = cube.k[:, rows], cube.v[:, rows]
        splice(self.caches, self.layout, table, self.block_size, load.start, k, v, delta, self.rotation)
        self.stats.add("loaded_bytes", "ram", k.nbytes + v.nbytes)

    def rest(self) -> None:
        """In a step without a forward: leave the cores to the reading threads for a moment."""
        if self.store.fetching:
            time.sleep(FETCH_PAUSE)

    def build(self, work: StepWork) -> None:
        """What comes after the forward: keep the K/V of the step's finished captures, compare those that ask for it."""
        for request in work.builds:
            for wanted in request.captures:
                if not self._tried("captured", wanted.key, lambda: self._capture(request, wanted)):  # noqa: B023
                    self.news.lost.add(wanted.key)
            for compare in request.compares:
                self._tried("compared", compare.key, lambda: self._compare(request, compare))  # noqa: B023

    def _tried(self, done: str, key: str, action: Callable[[], None]) -> bool:
        """Whether the action succeeded: if memory is short, say, it is a cube less, not an engine less."""
        try:
            action()
        except UNUSABLE as error:
            logger.error("KV cube %s was not %s: %s", key, done, error)
            self.stats.add("failures", "capture")
            return False
        return True

    def _capture(self, request: RequestWork, wanted: Capture) -> None:
        began = time.perf_counter()
        k, v = self._rows(request, wanted.start, wanted.length)
        label, cube = self._label(wanted.key, wanted.tokens), KVCube(k, v, wanted.start)
        if wanted.in_ram:
            self.store.keep(wanted.key, label, cube, write=wanted.on_disk)
        elif wanted.on_disk:
            self.store.write(wanted.key, label, cube)
        self.stats.time("capture_seconds", time.perf_counter() - began)

    def _compare(self, request: RequestWork, compare: Compare) -> None:
        """Learn how far the tokens of a cube moved behind other text; one rank's heads are sample enough."""
        cube = self.store.get(compare.key, self._label(compare.key, compare.tokens))
        if cube is not None and self.store.rank == 0:
            k, v = self._rows(request, compare.start, compare.length)
            moved = KVCube(k, v, compare.start)
            self.comparer.submit(self._write_deviation, compare.key, cube, moved)

    def _write_deviation(self, key: str, cube: KVCube, moved: KVCube) -> None:
        try:
            k = rotate(moved.k, cube.origin - moved.origin, self.rotation)
            path = deviation_path(self.store.memory_dir, self.identity, key, self.store.world)
            write_deviation(path, pack(deviation(cube.k, cube.v, k, moved.v).tolist()))
        except UNUSABLE as error:  # the cube is as good without
            logger.error("KV cube %s was not compared: %s", key, error)

    def _rows(self, request: RequestWork, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.layout is not None
        table = torch.tensor(request.block_ids, device=self.caches[0].device)
        return capture(self.caches, self.layout, table, self.block_size, start, length)

    def take_failed_blocks(self) -> set[int]:
        failed, self.failed_blocks = self.failed_blocks, set()
        return failed

    def take_news(self) -> StepNews | None:
        """What happened since the last call: it rides back with the step's output."""
        if self.store.pending:
            self._look_at_files()
        news = self.news
        if not (news.fetched or news.written or news.failed or news.lost):
            return None
        self.news = StepNews()
        return news

    def _look_at_files(self) -> None:
        for fetched in self.store.poll():
            self.news.fetched[fetched.key] = Tally(1, fetched.error)
            self.stats.time("fetch_seconds", fetched.seconds)
            self.stats.add("loaded_bytes", "disk", fetched.nbytes)
        for written in self.store.written():
            self.news.written[written.key] = Tally(1, written.error)

    def take_stats(self) -> MemosStats | None:
        """What was counted since the last call; None where that is nothing."""
        if self.stats.is_empty():
            return None
        stats, self.stats = self.stats, MemosStats()
        return stats

    def shutdown(self) -> None:
        self.comparer.shutdown(wait=False, cancel_futures=True)
        self.store.close()
