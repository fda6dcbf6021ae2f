"""KVStore: a worker's KV cubes in RAM, and the threads that read and write its KV files.

It decides nothing: `KVTiers`, in the engine's scheduler, says what is fetched, kept and dropped. Every method belongs
to the worker's forward thread and none of them waits for a disk, but for `close`. The threads see a file and a payload,
and hand back a result; what lies in RAM changes in the methods alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from memos_vllm.activation.files import KVLabel, host_bytes, kv_path, read_payload, write_kv
from memos_vllm.activation.payload import KVCube, Payload
from memos_vllm.activation.quantize import StoreDtype
from memos_vllm.errors import KVUnusable

FETCH_SECONDS = 60.0
"""After this long a fetch is reported as failed, so that no request waits for a disk that hangs."""
UNWRITTEN_BYTES = 2 << 30
"""Captured K/V that may wait for a slow disk; what comes on top is not written, and reported so."""


@dataclass(frozen=True)
class Fetched:
    """A fetch has ended. If `ok`, `get` has the cube; `seconds` from the command to the end, `nbytes` in RAM."""

    key: str
    ok: bool
    nbytes: int
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Written:
    """A write has ended. `nbytes` of payload, `seconds` from the command to the end."""

    key: str
    ok: bool
    nbytes: int
    seconds: float
    error: str = ""


@dataclass
class _Job:
    """Something on its way: a fetch (`dropped`: nobody wants it any more), or a captured cube's packing and `write`."""

    label: KVLabel
    future: Future[Payload]
    cube: KVCube | None = None
    dropped: bool = False
    write: bool = True
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def error(self) -> str:
        """Why it failed, "" if it did not."""
        try:
            error = self.future.exception()
        except CancelledError:
            return "the store was closed"
        return f"{type(error).__name__}: {error}" if error else ""


def _same(one: KVLabel, other: KVLabel) -> bool:
    return (one.key, one.identity, one.tokens) == (other.key, other.identity, other.tokens)


class KVStore:
    """One per worker. `dtype` other than `auto` keeps RAM and files in 8 bit.

    pin_memory: payloads lie in pinned host memory, ignored without CUDA. Torch's allocator pools it, and rounds each
        size up to a power of two: the process may take up to twice the planned bytes.
    """

    def __init__(
        self,
        memory_dir: Path,
        rank: int,
        world: int,
        io_threads: int = 2,
        dtype: StoreDtype = "auto",
        pin_memory: bool = False,
        unwritten_bytes: int = UNWRITTEN_BYTES,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self.memory_dir, self.rank, self.world, self.dtype = memory_dir, rank, world, dtype
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.unwritten_bytes, self.fetch_seconds = unwritten_bytes, fetch_seconds
        self._resident: dict[str, tuple[KVLabel, Payload]] = {}
        self._fetches: list[_Job] = []
        self._writes: list[_Job] = []
        self._fetched: list[Fetched] = []
        self._written: list[Written] = []
        self._closed = threading.Event()
        self._readers = ThreadPoolExecutor(io_threads, thread_name_prefix="memos-kv-reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="memos-kv-writer")

    # what the scheduler orders

    def fetch(self, key: str, label: KVLabel, shape: Sequence[int]) -> None:
        """Have the cube's file read into RAM; `poll` reports the end, once for each call.

        shape: of the rank's k, `[layers, tokens, kv_heads, head_dim]`. A cube that is in RAM already is reported at
        once. A file that is truncated, corrupt or foreign is removed.
        """
        assert key == label.key
        wanted = replace(label, rank=self.rank, world=self.world, store=self.dtype)
        resident = self._resident.get(key)
        if resident is not None and _same(resident[0], wanted):
            self._fetched.append(Fetched(key, True, resident[1].nbytes, 0.0))
        elif self._closed.is_set():
            self._fetched.append(Fetched(key, False, 0, 0.0, "the store was closed"))
        else:
            future = self._readers.submit(self._read, wanted, tuple(shape))
            self._fetches.append(_Job(wanted, future))

    def keep(self, key: str, label: KVLabel, cube: KVCube, write: bool = True) -> None:
        """Take a captured cube into RAM, and write its file in the background if `write`; `written` reports that.

        The tensors belong to the store from here on. In 8-bit storage the cube is exact until a thread has packed it.
        """
        assert key == label.key
        mine = replace(label, rank=self.rank, world=self.world, store=self.dtype)
        kept = self._on_host(cube)
        self._resident[key] = (mine, kept)
        if write or self.dtype != "auto":
            self._submit(mine, kept, write)

    def write(self, key: str, label: KVLabel, cube: KVCube) -> None:
        """Write a captured cube's file in the background and keep nothing in RAM; `written` reports the end."""
        assert key == label.key
        self._submit(replace(label, rank=self.rank, world=self.world, store=self.dtype), self._on_host(cube), True)

    def drop(self, key: str) -> None:
        """Forget a cube in RAM, and what is being fetched of it (still reported, as failed). Writes go on."""
        self._resident.pop(key, None)
        for job in self._fetches:
            job.dropped |= job.label.key == key

    # what the worker asks

    def get(self, key: str, label: KVLabel) -> KVCube | None:
        """The cube if it is in RAM, of this identity and these tokens; unpacked if it is stored in 8 bit.

        After a fetch: from the `poll` on that reports it.
        """
        found = self._resident.get(key)
        return found[1].unpack() if found is not None and _same(found[0], label) else None

    def poll(self) -> list[Fetched]:
        """The fetches that ended since the last call."""
        reports, self._fetched = self._fetched, []
        pending = []
        for job in self._fetches:
            if job.future.done():
                reports.append(self._ended_fetch(job))
            elif job.seconds > self.fetch_seconds:
                job.future.cancel()
                error = f"not read within {self.fetch_seconds:.0f} s"
                reports.append(Fetched(job.label.key, False, 0, job.seconds, error))
            else:
                pending.append(job)
        self._fetches = pending
        return reports

    def written(self) -> list[Written]:
        """The writes that ended since the last call."""
        reports, self._written = self._written, []
        ended = [job for job in self._writes if job.future.done()]
        self._writes = [job for job in self._writes if not job.future.done()] if ended else self._writes
        for job in ended:
            error = job.error()
            if not error:
                self._take_packed(job)
            if job.write:
                assert job.cube is not None
                reports.append(Written(job.label.key, not error, job.cube.nbytes, job.seconds, error))
        return reports

    @property
    def num_resident(self) -> int:
        return len(self._resident)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the payloads in RAM; a little more than planned while captures wait to be packed."""
        return sum(payload.nbytes for _, payload in self._resident.values())

    @property
    def pending(self) -> int:
        """Fetches and writes that have not been reported."""
        return len(self._fetches) + len(self._fetched) + len(self._writes) + len(self._written)

    @property
    def fetching(self) -> int:
        """Fetches that have not been reported."""
        return len(self._fetches) + len(self._fetched)

    def host_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory to capture into, pinned if payloads are."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=self.pin_memory)

    def close(self) -> None:
        """Finish the writes, give up the fetches; `poll` and `written` still report them. Nothing is taken after it."""
        self._closed.set()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True)

    def check_integrity(self) -> None:
        """Raise AssertionError when a label does not fit its key, or a payload its label."""
        for key, (label, payload) in self._resident.items():
            assert key == label.key
            assert (label.rank, label.world) == (self.rank, self.world)
            assert payload.store in ("auto", label.store)

    def _ended_fetch(self, job: _Job) -> Fetched:
        key, error = job.label.key, job.error()
        if job.dropped:
            error = error or "dropped meanwhile"
        if error:
            return Fetched(key, False, 0, job.seconds, error)
        resident = self._resident.get(key)
        if resident is None or not _same(resident[0], job.label):  # else a capture came first: it is as good
            self._resident[key] = resident = (job.label, job.future.result())
        return Fetched(key, True, resident[1].nbytes, job.seconds)

    def _take_packed(self, job: _Job) -> None:
        """Put a capture's packed form in the place of its exact one, if that is still there."""
        resident = self._resident.get(job.label.key)
        if resident is not None and resident[1] is job.cube:
            self._resident[job.label.key] = (job.label, job.future.result())

    def _submit(self, label: KVLabel, cube: KVCube, write: bool) -> None:
        """Queue packing and writing."""
        waiting = sum(job.cube.nbytes for job in self._writes if job.cube is not None)
        if self._closed.is_set():
            error = "the store was closed"
        elif waiting and waiting + cube.nbytes > self.unwritten_bytes:
            error = f"{waiting >> 20} MiB wait for the disk already"
        else:
            future = self._writer.submit(self._pack_and_write, label, cube, write)
            self._writes.append(_Job(label, future, cube, write=write))
            return
        if write:
            self._written.append(Written(label.key, False, cube.nbytes, 0.0, error))

    def _on_host(self, cube: KVCube) -> KVCube:
        """The cube in memory of the kind that the store keeps."""
        k, v = cube.k, cube.v
        if self.pin_memory:
            k, v = (tensor if tensor.is_pinned() else self._pinned(tensor) for tensor in (k, v))
        return replace(cube, k=k.cpu(), v=v.cpu())

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.host_empty(tensor.shape, tensor.dtype).copy_(tensor)

    # on the threads

    def _allocate(self, nbytes: int) -> torch.Tensor:
        return self.host_empty((nbytes,), torch.uint8) if self.pin_memory else host_bytes(nbytes)

    def _path(self, label: KVLabel) -> Path:
        return kv_path(self.memory_dir, label.identity, label.key, label.rank, label.world)

    def _read(self, label: KVLabel, shape: tuple[int, ...]) -> Payload:
        path = self._path(label)
        try:
            payload = read_payload(path, label, shape, self._allocate)
        except KVUnusable as error:
            if not isinstance(error.__cause__, OSError):  # the file is there, and bad
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        return payload.pack(label.store) if isinstance(payload, KVCube) else payload

    def _pack_and_write(self, label: KVLabel, cube: KVCube, write: bool) -> Payload:
        payload = cube.pack(label.store)
        if write:
            write_kv(self._path(label), label, payload)
        return payload
