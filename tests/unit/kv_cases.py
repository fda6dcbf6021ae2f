"""KV cubes, their files, and a gate that holds a store's readers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from memos_vllm.activation import store as store_module
from memos_vllm.activation.files import KVLabel, kv_path, read_payload, write_kv
from memos_vllm.activation.payload import KVCube, Payload
from memos_vllm.activation.store import Fetched, KVStore

IDENTITY = "b" * 32
SHAPE = (2, 5, 2, 8)
Result = TypeVar("Result")


def label(key: str, tokens: str = "c") -> KVLabel:
    return KVLabel(key, IDENTITY, tokens * 64)


def cube(seed: int = 0) -> KVCube:
    k, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return KVCube(k, v, origin=seed)


def path_of(store: KVStore, key: str) -> Path:
    return kv_path(store.memory_dir, IDENTITY, key, store.rank, store.world)


def first(ask: Callable[[], list[Result]], seconds: float = 20.0) -> Result:
    """The one report that `ask` gives within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if reports := ask():
            (report,) = reports
            return report
        time.sleep(0.001)
    raise AssertionError("nothing was reported")


def on_disk(store: KVStore, key: str, seed: int = 0) -> Path:
    path = path_of(store, key)
    write_kv(path, KVLabel(key, IDENTITY, "c" * 64, store.rank, store.world), cube(seed))
    return path


def fetched(store: KVStore, key: str, wanted: KVLabel | None = None) -> Fetched:
    store.fetch(key, wanted or label(key), SHAPE)
    return first(store.poll)


def same(one: KVCube | None, other: KVCube) -> bool:
    return (
        one is not None and torch.equal(one.k, other.k) and torch.equal(one.v, other.v) and one.origin == other.origin
    )


class Gate:
    """Holds the reader threads until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr(store_module, "read_payload", self._read)

    def _read(self, path: Path, wanted: KVLabel, shape: tuple[int, ...], allocate: object) -> Payload:
        self.entered.release()
        assert self.opened.wait(20)
        return read_payload(path, wanted, shape)
