"""The host-RAM tier: KV cubes by key, least recently used first out, within a byte budget."""

from __future__ import annotations

from collections import OrderedDict

from memos_vllm.activation.files import KVCube


class RamPool:
    """Not thread-safe: it belongs to the worker's forward thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._cubes: OrderedDict[str, KVCube] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cubes)

    def __contains__(self, key: str) -> bool:
        return key in self._cubes

    def get(self, key: str) -> KVCube | None:
        cube = self._cubes.get(key)
        if cube is not None:
            self._cubes.move_to_end(key)
        return cube

    def put(self, key: str, cube: KVCube) -> None:
        """Keep a cube and evict the least recently used ones over budget; a cube over the whole budget is not kept."""
        self.drop(key)
        if cube.nbytes > self.max_bytes:
            return
        self._cubes[key] = cube
        self.num_bytes += cube.nbytes
        while self.num_bytes > self.max_bytes:
            self.drop(next(iter(self._cubes)))

    def drop(self, key: str) -> None:
        cube = self._cubes.pop(key, None)
        if cube is not None:
            self.num_bytes -= cube.nbytes

    def check_integrity(self) -> None:
        """Raise AssertionError unless the byte count balances and keeps the budget."""
        assert self.num_bytes == sum(cube.nbytes for cube in self._cubes.values())
        assert self.num_bytes <= self.max_bytes
