"""The disk tier over a real folder: budget, order of eviction, what is present, and what crashes leave."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Container, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.activation import disk
from memos_vllm.activation.disk import DiskTier, remove_unlisted
from memos_vllm.activation.files import KVLabel, kv_path, write_kv
from memos_vllm.activation.identity import KVIdentity, kv_key
from memos_vllm.activation.payload import KVCube
from memos_vllm.activation.policies import CostPolicy, EvictionPolicy, LRUPolicy

IDENTITY, OTHER = "b" * 32, "e" * 32
HOUR = 3600.0


def key(number: int) -> str:
    return f"{number:032x}"


def write(folder: Path, name: str, identity: str = IDENTITY, world: int = 1, tokens: int = 4, age: float = 0.0) -> int:
    """Files of all ranks, last used `age` seconds ago; returns their bytes."""
    k = torch.zeros(2, tokens, 2, 8)
    size = 0
    for rank in range(world):
        path = kv_path(folder, identity, name, rank, world)
        write_kv(path, KVLabel(name, identity, "c" * 64, rank, world), KVCube(k, k, 0))
        os.utime(path, (time.time() - age,) * 2)
        size += path.stat().st_size
    return size


def write_some(folder: Path, count: int, age: float = 0.0) -> int:
    """Cubes 0 to `count` - 1, the first used the longest ago, by some seconds and `age`; returns the bytes of one."""
    return max([write(folder, key(number), age=age + count - number) for number in range(count)])


def files(folder: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in folder.rglob("*.safetensors")}


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


MakeTier = Callable[..., DiskTier]


@pytest.fixture
def make_tier(tmp_path: Path) -> Iterator[MakeTier]:
    tiers: list[DiskTier] = []

    def make(
        disk_bytes: int | None,
        policy: EvictionPolicy | None = None,
        world: int = 1,
        in_use: Container[str] = (),
    ) -> DiskTier:
        tier = DiskTier(
            tmp_path,
            IDENTITY,
            world,
            disk_bytes,
            policy or LRUPolicy(),
            lambda key: key in in_use,
            rescan=HOUR,
            rescan_pause=0.0,
        )
        tiers.append(tier)
        return tier

    yield make
    for tier in tiers:
        tier.check_integrity()
        tier.close()


def settle(tier: DiskTier) -> None:
    assert tier.wait_idle()
    tier.check_integrity()


def test_what_the_folder_holds_is_present_at_once(tmp_path: Path, make_tier: MakeTier) -> None:
    for name in (1, 2):
        write(tmp_path, key(name))
    write(tmp_path, key(3), identity=OTHER)
    write(tmp_path, key(4), world=2)
    tier = make_tier(None)
    assert [tier.present(key(number)) for number in range(5)] == [False, True, True, False, False]
    stats = tier.stats()
    assert (stats.num_cubes, stats.num_bytes) == (4, disk_bytes(tmp_path))


def test_a_cube_is_present_when_all_ranks_files_are(tmp_path: Path, make_tier: MakeTier) -> None:
    write(tmp_path, key(1), world=2)
    write(tmp_path, key(2), world=2)
    kv_path(tmp_path, IDENTITY, key(2), 1, 2).unlink()
    tier = make_tier(None, world=2)
    assert tier.present(key(1)) and not tier.present(key(2))


def test_room_is_made_before_a_capture_and_the_oldest_goes(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write_some(tmp_path, 4)
    tier = make_tier(5 * one)
    assert tier.make_room(key(9), 2 * one)
    settle(tier)
    assert files(tmp_path) == {key(1), key(2), key(3)}
    assert not tier.present(key(0))
    assert tier.stats().expected_bytes == 2 * one
    write(tmp_path, key(9))
    tier.added(key(9))
    assert tier.present(key(9)), "at once"
    settle(tier)
    assert tier.stats().expected_bytes == 0
    assert tier.stats().num_bytes == disk_bytes(tmp_path) == 4 * one
    assert (tier.stats().evictions, tier.stats().evicted_bytes) == (1, one)


def test_a_cube_larger_than_the_budget_is_refused_and_evicts_nothing(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write(tmp_path, key(1))
    tier = make_tier(2 * one)
    assert not tier.make_room(key(2), 3 * one)
    settle(tier)
    assert files(tmp_path) == {key(1)}
    assert tier.make_room(key(2), one)
    assert tier.make_room(key(2), one), "the same one"
    assert not tier.make_room(key(3), one + 1), "together with the one on its way"
    tier.gone(key(2))
    assert tier.make_room(key(3), one + 1)


def test_what_is_in_use_or_on_its_way_stays(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write_some(tmp_path, 5)
    tier = make_tier(5 * one, in_use={key(0), key(2)})
    tier.make_room(key(1), one)  # captured anew: its files are about to be replaced
    tier.make_room(key(9), 2 * one)
    settle(tier)
    assert files(tmp_path) == {key(0), key(1), key(2)}


def test_a_use_saves_a_cube_now_and_after_a_restart(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write_some(tmp_path, 3)
    tier = make_tier(3 * one)
    tier.used(key(0))
    tier.make_room(key(9), one)
    settle(tier)
    assert files(tmp_path) == {key(0), key(2)}
    tier.close()
    later = make_tier(2 * one)
    later.make_room(key(9), one)
    settle(later)
    assert files(tmp_path) == {key(0)}


def test_other_models_and_sizes_go_first_and_whole(tmp_path: Path, make_tier: MakeTier) -> None:
    old = write(tmp_path, key(1), age=HOUR, world=2)
    write(tmp_path, key(2), identity=OTHER, world=2)
    one = write(tmp_path, key(3), world=1, age=10.0)
    tier = make_tier(disk_bytes(tmp_path), world=2)
    tier.make_room(key(8), one)
    settle(tier)
    assert files(tmp_path) == {key(1), key(2)}
    tier.make_room(key(9), 1)
    settle(tier)
    assert files(tmp_path) == {key(1)}, "all ranks of 2, though it is younger"
    assert disk_bytes(tmp_path) == old


def test_a_folder_over_budget_at_the_start_is_cut_down(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write_some(tmp_path, 6)
    tier = make_tier(2 * one)
    tier.rescan_now()
    settle(tier)
    assert files(tmp_path) == {key(4), key(5)}


def test_cost_keeps_what_is_used_often(tmp_path: Path, make_tier: MakeTier) -> None:
    one = write_some(tmp_path, 3)
    tier = make_tier(2 * one, CostPolicy())
    for _ in range(3):
        tier.used(key(0))
    tier.rescan_now()
    settle(tier)
    assert files(tmp_path) == {key(0), key(2)}


def test_files_that_others_write_and_delete_are_found(tmp_path: Path, make_tier: MakeTier) -> None:
    write(tmp_path, key(1))
    tier = make_tier(None)
    kv_path(tmp_path, IDENTITY, key(1)).unlink()
    write(tmp_path, key(2))
    assert tier.present(key(1)) and not tier.present(key(2))
    tier.rescan_now()
    settle(tier)
    assert not tier.present(key(1)) and tier.present(key(2))
    assert tier.stats().num_bytes == disk_bytes(tmp_path)


def test_what_was_said_to_be_written_and_is_not_there_is_not_present(tmp_path: Path, make_tier: MakeTier) -> None:
    tier = make_tier(None)
    tier.added(key(1))
    settle(tier)
    assert not tier.present(key(1))
    write(tmp_path, key(2))
    tier.added(key(2))
    tier.gone(key(2))
    assert not tier.present(key(2))
    tier.rescan_now()
    settle(tier)
    assert tier.present(key(2)), "the folder is the truth"


def test_a_vanished_folder_and_a_strange_one(tmp_path: Path, make_tier: MakeTier) -> None:
    write(tmp_path, key(1))
    tier = make_tier(1 << 20)
    shutil.rmtree(tmp_path / "kv")
    tier.rescan_now()
    settle(tier)
    assert not tier.present(key(1)) and tier.stats().num_bytes == 0
    (tmp_path / "kv").write_text("no folder")
    tier.rescan_now()
    tier.make_room(key(2), 10)
    settle(tier)
    (tmp_path / "kv").unlink()
    write(tmp_path, key(3))
    strange = tmp_path / "kv" / "readme" / "x"
    strange.mkdir(parents=True)
    (strange / "notes.txt").write_text("mine")
    (strange / "notes.safetensors").write_text("mine")
    (strange / f"{key(4)}.7of2.safetensors").write_text("no such rank")
    tier.rescan_now()
    settle(tier)
    assert tier.present(key(3)) and tier.stats().num_cubes == 1
    assert len(list(strange.iterdir())) == 3


def test_crashes_leave_nothing_for_long(tmp_path: Path, make_tier: MakeTier) -> None:
    """An unfinished file, and a capture of which one rank was written."""
    for number, age in ((1, HOUR), (2, HOUR), (3, 0.0), (4, HOUR)):
        write(tmp_path, key(number), world=2, age=age)
    for number in (2, 3):
        kv_path(tmp_path, IDENTITY, key(number), 0, 2).unlink()
    path = kv_path(tmp_path, IDENTITY, key(1), 0, 2)
    (path.parent / f".{path.name}.abc.tmp").write_bytes(b"half")
    tier = make_tier(None, world=2)
    tier.rescan_now()
    settle(tier)
    assert files(tmp_path) == {key(1), key(3), key(4)}
    assert not list(tmp_path.rglob("*.tmp"))
    assert tier.stats().leftovers == 2


def test_files_that_no_manifest_lists_go(tmp_path: Path) -> None:
    """A capture that was killed between its files and the manifest; whoever made them, and all ranks'."""
    write(tmp_path, key(1), age=HOUR)
    write(tmp_path, key(2), age=HOUR, world=2)
    write(tmp_path, key(3), age=HOUR, identity=OTHER)
    write(tmp_path, key(4))
    assert remove_unlisted(tmp_path, {key(1)}) == 2
    assert files(tmp_path) == {key(1), key(4)}
    assert remove_unlisted(tmp_path / "none", set()) == 0


def test_the_thread_outlives_what_it_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_tier: MakeTier
) -> None:
    one = write_some(tmp_path, 3)
    answers = iter([RuntimeError("asked at a bad time")])

    def broken(name: str) -> bool:
        for error in answers:
            raise error
        return False

    tier = DiskTier(tmp_path, IDENTITY, 1, 3 * one, LRUPolicy(), in_use=broken, rescan=HOUR)
    with caplog.at_level(logging.ERROR):
        tier.make_room(key(9), one)
        assert tier.wait_idle()
    assert "asked at a bad time" in caplog.text
    assert len(files(tmp_path)) == 3
    tier.make_room(key(9), one)
    assert tier.wait_idle()
    assert files(tmp_path) == {key(1), key(2)}, "the thread goes on"
    tier.close()


def test_scans_that_are_asked_for_keep_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[float] = []
    real = disk.scan

    def counted(*args: Any) -> Any:
        scans.append(time.monotonic())
        return real(*args)

    monkeypatch.setattr(disk, "scan", counted)
    tier = DiskTier(tmp_path, IDENTITY, 1, None, LRUPolicy(), rescan=HOUR, rescan_pause=0.2)
    for _ in range(50):
        tier.rescan_now()
        time.sleep(0.01)
    tier.close()
    assert 2 <= len(scans) <= 5
    assert all(later - earlier > 0.15 for earlier, later in pairwise(scans))


def test_the_same_text_of_the_same_owner_is_stored_once(tmp_path: Path, make_tier: MakeTier) -> None:
    """Two memories of one owner, equal in content, share their K/V; another owner, scaffold or model has its own."""
    model = KVIdentity("m", "t", "bfloat16", 2, 2, 8, "{}")
    other_model = KVIdentity("m2", "t", "bfloat16", 2, 2, 8, "{}")
    wanted = [
        (model, "maya", [1, 2], [5, 6]),
        (model, "maya", (1, 2), (5, 6)),
        (model, "noah", [1, 2], [5, 6]),
        (model, "maya", [1], [5, 6]),
        (other_model, "maya", [1, 2], [5, 6]),
    ]
    names = [(identity, kv_key(identity, owner, scaffold, ids)) for identity, owner, scaffold, ids in wanted]
    for identity, name in names:
        write(tmp_path, name, identity.digest())
    assert names[0] == names[1]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    assert make_tier(None).stats().num_cubes == 4


EVENTS = st.lists(
    st.tuples(st.sampled_from(["capture", "use", "lose", "scan", "steal"]), st.integers(0, 5), st.integers(1, 6)),
    max_size=20,
)


@given(events=EVENTS, kind=st.sampled_from([LRUPolicy, CostPolicy]))
@settings(deadline=None, max_examples=40)
def test_any_history_keeps_the_budget_and_knows_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int, int]], kind: type[LRUPolicy | CostPolicy]
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    one = write(folder, key(99), tokens=1)
    tier = DiskTier(folder, IDENTITY, 1, 6 * one, kind(), lambda name: name == key(0), rescan=HOUR, rescan_pause=0)
    for event, number, tokens in events:
        if event == "capture":
            assert tier.make_room(key(number), one + 256 * (tokens - 1))
            assert tier.wait_idle()
            write(folder, key(number), tokens=tokens)
            tier.added(key(number))
        elif event == "use":
            tier.used(key(number))
        elif event == "lose":
            kv_path(folder, IDENTITY, key(number)).unlink(missing_ok=True)
            tier.gone(key(number))
        elif event == "steal":
            kv_path(folder, IDENTITY, key(number)).unlink(missing_ok=True)
        tier.rescan_now()
        assert tier.wait_idle()
        tier.check_integrity()
        assert {name for name in map(key, range(100)) if tier.present(name)} == files(folder)
        assert tier.stats().num_bytes == disk_bytes(folder)
        assert disk_bytes(folder) <= 6 * one or files(folder) == {key(0)}
    tier.close()


def test_the_methods_never_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread is stuck in a disk that hangs, a step can ask and tell everything."""
    one = write_some(tmp_path, 3)
    tier = DiskTier(tmp_path, IDENTITY, 1, 3 * one, LRUPolicy(), rescan=HOUR)
    stuck, opened = threading.Event(), threading.Event()
    unlink = Path.unlink

    def slow(path: Path, missing_ok: bool = False) -> None:
        stuck.set()
        assert opened.wait(20)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", slow)
        tier.make_room(key(9), one)
        assert stuck.wait(20)
        tier.make_room(key(8), one)
        tier.added(key(7))
        tier.gone(key(6))
        tier.used(key(1))
        assert tier.present(key(2))
        assert tier.stats().num_cubes == 2
        assert not tier.wait_idle(0.01)
        opened.set()
        assert tier.wait_idle()
    tier.close()
