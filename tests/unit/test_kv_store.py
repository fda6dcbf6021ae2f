"""A worker's KV store: real files and threads, in every order of orders."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.activation.files import KVLabel, kv_path, read_kv, write_kv
from memos_vllm.activation.payload import KVCube
from memos_vllm.activation.quantize import StoreDtype
from memos_vllm.activation.store import Fetched, KVStore, Written
from tests.unit.kv_cases import IDENTITY, SHAPE, Gate, cube, fetched, first, label, on_disk, path_of, same


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KVStore]:
    found = KVStore(tmp_path, 0, 1)
    yield found
    found.close()


def test_a_cube_goes_to_disk_and_comes_back(store: KVStore) -> None:
    store.keep("a", label("a"), cube(3))
    assert same(store.get("a", label("a")), cube(3))
    written = first(store.written)
    assert written == Written("a", True, cube().nbytes, written.seconds)
    store.drop("a")
    assert store.get("a", label("a")) is None
    assert store.num_resident == store.resident_bytes == 0
    report = fetched(store, "a")
    assert report == Fetched("a", True, cube().nbytes, report.seconds)
    assert same(store.get("a", label("a")), cube(3))
    assert store.resident_bytes == cube().nbytes
    store.check_integrity()


def test_keep_in_ram_only_and_in_a_file_only(store: KVStore) -> None:
    store.keep("a", label("a"), cube(), write=False)
    store.write("b", label("b"), cube(1))
    assert first(store.written).key == "b"
    assert store.get("b", label("b")) is None
    assert not path_of(store, "a").exists()
    assert same(read_kv(path_of(store, "b"), label("b")), cube(1))


def test_a_hit_is_of_the_same_identity_and_tokens(store: KVStore) -> None:
    """A key is a name only: 128 bits of a fast hash must not vouch for one user's memories before another."""
    store.keep("a", label("a"), cube(), write=False)
    assert store.get("a", label("a", tokens="d")) is None
    assert store.get("a", KVLabel("a", "e" * 32, "c" * 64)) is None
    assert not fetched(store, "a", label("a", tokens="d")).ok
    assert same(store.get("a", label("a")), cube())


def test_a_fetch_of_what_is_there_asks_no_disk(store: KVStore) -> None:
    store.keep("a", label("a"), cube(), write=False)
    store.fetch("a", label("a"), SHAPE)
    assert store.poll() == [Fetched("a", True, cube().nbytes, 0.0)]


def test_ranks_have_files_of_their_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        mine = KVStore(tmp_path, rank, 2)
        mine.keep("a", label("a"), cube(rank))
        mine.close()
        assert [report.ok for report in mine.written()] == [True]
    mine = KVStore(tmp_path, 1, 2)
    assert fetched(mine, "a").ok
    assert same(mine.get("a", label("a")), cube(1))
    path_of(mine, "a").write_bytes(kv_path(tmp_path, IDENTITY, "a", 0, 2).read_bytes())
    mine.drop("a")
    assert "of another rank" in fetched(mine, "a").error
    mine.close()


def test_a_dropped_fetch_is_discarded_and_reported(store: KVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(store, "a")
    gate = Gate(monkeypatch)
    store.fetch("a", label("a"), SHAPE)
    gate.entered.acquire()
    store.drop("a")
    assert store.poll() == []
    store.fetch("a", label("a"), SHAPE)  # wanted again: a fetch of its own
    gate.opened.set()
    reports: list[Fetched] = []
    while len(reports) < 2:
        reports += store.poll()
    assert sorted(report.ok for report in reports) == [False, True]
    assert store.num_resident == 1


def test_a_capture_during_a_fetch_wins(store: KVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk(store, "a", seed=1)
    gate = Gate(monkeypatch)
    store.fetch("a", label("a"), SHAPE)
    gate.entered.acquire()
    store.keep("a", label("a"), cube(2), write=False)
    gate.opened.set()
    assert first(store.poll).ok
    assert same(store.get("a", label("a")), cube(2))


def test_close_finishes_writes_and_gives_up_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KVStore(tmp_path, 0, 1, io_threads=1)
    for key in "abc":
        on_disk(store, key)
    gate = Gate(monkeypatch)
    for key in "abc":
        store.fetch(key, label(key), SHAPE)
    gate.entered.acquire()
    for key in "xyz":
        store.keep(key, label(key), cube())
    threading.Timer(0.05, gate.opened.set).start()
    store.close()
    assert [report.ok for report in store.poll()] == [True, False, False]
    assert [(report.key, report.ok) for report in store.written()] == [("x", True), ("y", True), ("z", True)]
    store.fetch("b", label("b"), SHAPE)
    store.keep("w", label("w"), cube())
    assert store.poll()[0].error == store.written()[0].error == "the store was closed"
    assert store.pending == 0
    store.close()


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_8_bit_in_ram_and_on_disk(tmp_path: Path, dtype: StoreDtype) -> None:
    store = KVStore(tmp_path, 0, 1, dtype=dtype)
    store.keep("a", label("a"), cube())
    store.keep("b", label("b"), cube(), write=False)
    assert same(store.get("a", label("a")), cube()), "exact until it has been packed"
    assert first(store.written).ok
    expected = cube().pack(dtype)
    while store.resident_bytes > 2 * expected.nbytes:
        assert store.written() == []
    for key in "ab":
        assert same(store.get(key, label(key)), expected.unpack())
    store.drop("a")
    assert fetched(store, "a").nbytes == expected.nbytes
    assert same(store.get("a", label("a")), expected.unpack())
    write_kv(path_of(store, "c"), label("c"), cube())  # written before 8-bit storage was switched on
    assert fetched(store, "c").nbytes == expected.nbytes
    assert same(store.get("c", label("c")), expected.unpack())
    store.check_integrity()
    store.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_payloads_are_pinned(tmp_path: Path) -> None:
    store = KVStore(tmp_path, 0, 1, pin_memory=True)
    made = cube()
    store.keep("a", label("a"), KVCube(made.k.cuda(), made.v.cuda(), made.origin))
    assert first(store.written).ok
    for _ in range(2):  # as captured, and as read
        found = store.get("a", label("a"))
        assert found is not None and same(found, made)
        assert found.k.is_pinned() and found.v.is_pinned()
        store.drop("a")
        assert fetched(store, "a").ok
    store.close()


def test_k_and_v_that_do_not_fit_8_bit_stay_exact_in_ram(tmp_path: Path) -> None:
    store = KVStore(tmp_path, 0, 1, dtype="int8")
    bad = cube()
    bad.k[0, 0, 0, 0] = float("inf")
    store.keep("a", label("a"), bad)
    assert "not finite" in first(store.written).error
    assert store.get("a", label("a")) is not None
    store.close()


ORDERS = st.lists(
    st.tuples(st.sampled_from(["keep", "fetch", "drop", "poll", "damage"]), st.sampled_from("ab")), max_size=25
)


@given(orders=ORDERS)
@settings(deadline=None, max_examples=60)
def test_any_order_of_orders(tmp_path_factory: pytest.TempPathFactory, orders: list[tuple[str, str]]) -> None:
    """Each fetch and each write is reported once, and whatever `get` gives is right."""
    store = KVStore(tmp_path_factory.mktemp("kv"), 0, 1)
    seeds = {"a": 1, "b": 2}
    sent = {"fetch": 0, "keep": 0}
    reports = {"fetch": 0, "keep": 0}
    for order, key in orders:
        if order == "keep":
            store.keep(key, label(key), cube(seeds[key]))
        elif order == "fetch":
            store.fetch(key, label(key), SHAPE)
        elif order == "drop":
            store.drop(key)
        elif order == "damage" and path_of(store, key).exists():
            path_of(store, key).write_bytes(b"junk")
        sent[order] = sent.get(order, 0) + 1
        reports["fetch"] += len(store.poll())
        reports["keep"] += len(store.written())
        for each in "ab":
            found = store.get(each, label(each))
            assert found is None or same(found, cube(seeds[each]))
        store.check_integrity()
    store.close()
    reports["fetch"] += len(store.poll())
    reports["keep"] += len(store.written())
    assert reports == {kind: sent[kind] for kind in reports}
    assert store.pending == 0
