"""The connector's worker half: splices KV cubes into this rank's paged blocks and captures cubes out of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from memos_kernels.capture import capture
from memos_kernels.layout import Layout
from memos_kernels.splice import splice
from vllm.logger import init_logger

from memos_vllm.activation.files import KVCube, KVLabel, kv_path, read_kv, write_kv
from memos_vllm.activation.pool import RamPool
from memos_vllm.engine.messages import Capture, Load, LoadResult, RequestWork, StepNews, StepWork
from memos_vllm.errors import KVUnusable

logger = init_logger("vllm.memos.worker")


class WorkerHalf:
    """Lives in each tensor-parallel worker; all methods run on its forward thread, files are written on another."""

    def __init__(
        self, memory_dir: Path, identity: str, ram_bytes: int, inv_freq: torch.Tensor, rank: int, world: int
    ) -> None:
        self.memory_dir, self.identity, self.rank, self.world = memory_dir, identity, rank, world
        self.inv_freq = inv_freq
        self.pool = RamPool(ram_bytes)
        self.caches: list[torch.Tensor] = []
        self.layout: Layout | None = None
        self.block_size = 0
        self.failed_blocks: set[int] = set()
        self.results: dict[str, LoadResult] = {}
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="memos-kv-writer")

    def register(self, caches: dict[str, torch.Tensor], layout: Layout) -> None:
        """Take the layers' caches, `[num_blocks, kv_heads, block_size, 2 * head_dim]` each, in layer order."""
        self.caches, self.layout = list(caches.values()), layout
        self.block_size = self.caches[0].shape[2]

    def load(self, work: StepWork) -> None:
        """Splice every load of the step; one that fails marks its blocks for recomputation."""
        for request in work.loads:
            result = self.results.setdefault(request.request_id, LoadResult())
            for load in request.loads:
                try:
                    self._splice(request, load, result)
                except (KVUnusable, OSError, RuntimeError) as error:  # whatever it is, the request can be recomputed
                    logger.warning("tokens %d to %d of a request are recomputed: %s", load.start, load.end, error)
                    result.failed += 1
                    first, last = load.start // self.block_size, (load.end - 1) // self.block_size
                    self.failed_blocks.update(request.block_ids[first : last + 1])

    def _splice(self, request: RequestWork, load: Load, result: LoadResult) -> None:
        assert self.layout is not None
        cube = self._fetch(load, result)
        rows = slice(load.start - load.cube_start, load.end - load.cube_start)
        table = torch.tensor(request.block_ids, device=self.caches[0].device)
        delta = load.cube_start - cube.origin
        k, v = cube.k[:, rows], cube.v[:, rows]
        splice(self.caches, self.layout, table, self.block_size, load.start, k, v, delta, self.inv_freq)

    def _fetch(self, load: Load, result: LoadResult) -> KVCube:
        cube = self.pool.get(f"{load.key}:{load.tokens}")
        if cube is not None:
            result.ram += 1
            return cube
        cube = self._read(load)
        self.pool.put(f"{load.key}:{load.tokens}", cube)
        result.disk += 1
        return cube

    def _read(self, load: Load) -> KVCube:
        """The cube's file; one that cannot be used is removed, so that the cube is captured anew."""
        label = KVLabel(load.key, self.identity, load.tokens, self.rank, self.world)
        path = kv_path(self.memory_dir, self.identity, load.key, self.rank, self.world)
        try:
            cube = read_kv(path, label)
            if cube.k.shape[:2] != (len(self.caches), load.cube_length) or cube.k.shape != cube.v.shape:
                raise KVUnusable(f"{path.name} has shape {tuple(cube.k.shape)}, which does not fit")
            return cube
        except KVUnusable:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def save(self, work: StepWork) -> None:
        """Capture the step's finished prefills into the RAM pool and, in the background, into files."""
        for request in work.captures:
            for wanted in request.captures:
                try:
                    cube = self._capture(request, wanted)
                except RuntimeError as error:  # out of memory, say: a cube less, not an engine less
                    logger.error("KV cube %s was not captured: %s", wanted.key, error)
                    continue
                self.pool.put(f"{wanted.key}:{wanted.tokens}", cube)
                self.writer.submit(self._write, wanted, cube)

    def _capture(self, request: RequestWork, wanted: Capture) -> KVCube:
        assert self.layout is not None
        table = torch.tensor(request.block_ids, device=self.caches[0].device)
        k, v = capture(self.caches, self.layout, table, self.block_size, wanted.start, wanted.length)
        return KVCube(k, v, wanted.start)

    def _write(self, wanted: Capture, cube: KVCube) -> None:
        label = KVLabel(wanted.key, self.identity, wanted.tokens, self.rank, self.world)
        path = kv_path(self.memory_dir, self.identity, wanted.key, self.rank, self.world)
        try:
            write_kv(path, label, cube)
        except OSError as error:  # a full or vanished disk must not stop the engine; the manifest never hears of it
            logger.error("KV cube %s was not written: %s", wanted.key, error)

    def take_failed_blocks(self) -> set[int]:
        failed, self.failed_blocks = self.failed_blocks, set()
        return failed

    def take_news(self) -> StepNews | None:
        results, self.results = self.results, {}
        return StepNews(results) if results else None

    def shutdown(self) -> None:
        self.writer.shutdown(wait=True)
