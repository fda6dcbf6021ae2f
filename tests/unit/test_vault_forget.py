"""Forgetting a principal: nothing of theirs is left, and their name is nowhere."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import Forgotten, NotFound
from memos_vllm.vault import LogQuery, Usage, Vault, forgotten, keys, removals, snapshots
from memos_vllm.vault.audit import Noted
from memos_vllm.vault.env import Txn
from memos_vllm.vault.pipeline import AddStep, TransferStep
from tests.unit.vault_cases import add, kv_for, texts

SECRET = "maya.lindqvist"


class Badge(msgspec.Struct):
    number: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    """Someone whose name is in every table, among others who stay."""
    with Vault.open(path) as vault:
        mine, shared, gone = add(vault, "tea", "milk", "rain", owner=SECRET, access=("bo",))
        vault.update(mine.id, "green tea", actor=SECRET)
        vault.put_kv(kv_for(vault, shared, "k"))
        piece = msgspec.structs.replace(kv_for(vault, shared, "p"), cube_id="", cube_version=0, kind="piece")
        vault.put_kv(piece)
        vault.snapshot(SECRET, "monday", actor=SECRET)
        vault.delete(gone.id, actor=SECRET)
        (theirs,) = add(vault, "bo's", owner="bo", access=(SECRET,))
        vault.update(theirs.id, "bo's, by maya", actor=SECRET)
        vault.snapshot("bo", "tuesday", actor="bo")
        vault.edit(theirs.id, actor="bo", access=[SECRET, "cy"])
        vault.update(theirs.id, "bo's again", actor="bo")
        (lost,) = add(vault, "lost", owner="bo")
        vault.update(lost.id, "lost, by maya", actor=SECRET)
        vault.delete(lost.id, actor="bo")
        vault.add_uses({mine.id: 1}, 0.0)
        vault.put_entry("badge", "b1", Badge(7), actor="admin", owner=SECRET)
        yield vault
        assert vault.check() == [] and vault.verify_log() == []


def test_nothing_is_left(vault: Vault) -> None:
    before, anywhere = vault.traces_of(SECRET), vault.traces_anywhere(SECRET)
    assert before.keys() == anywhere.keys()
    named = {"cubes", "versions", "events", "owners", "grants", "mentions", "revisions", "statistics", "snapshots"}
    assert before.keys() >= named | {"snapshot_cubes", "kv", "kv_cubes", "index", "registry", "audit"}
    report = vault.forget(SECRET, actor="admin")
    assert (report.cubes, report.versions, report.snapshots, report.grants, report.registry) == (2, 1, 1, 1, 1)
    assert set(report.kv_keys) == {"k", "p"} and report.index_rows > 0 and report.mentions > 0
    assert vault.traces_of(SECRET) == {} == vault.traces_anywhere(SECRET) and vault.usage(SECRET) == Usage()
    assert not (vault.list(SECRET) or vault.readable(SECRET) or vault.snapshots(SECRET) or vault.iter_kv())
    assert list((vault.path / "kv").iterdir()) == []
    assert vault.entries("badge", Badge) == {} and vault.revision(SECRET) == 0


def test_no_row_holds_the_name_or_its_digest(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.forget(SECRET, actor="admin")
    databases = vault._env._databases
    rows = vault._env.read(lambda txn: [(name, key, value) for name in databases for key, value in txn.scan(name)])
    assert [row for row in rows if SECRET.encode() in row[2]] == []
    digest = keys.digest(SECRET)
    assert [name for name, key, value in rows if digest in key + value] == ["meta"], "to refuse what comes too late"
    monkeypatch.setattr(forgotten, "KEPT", 0.0)
    vault.sweep_forgotten()
    assert vault._env.read(lambda txn: [key for key, _ in txn.scan("meta") if digest in key]) == []


def test_others_keep_what_is_theirs(vault: Vault) -> None:
    (before,) = vault.list("bo")
    vault.forget(SECRET, actor="admin")
    (after,) = vault.list("bo")
    assert after.text == before.text and after.readers() == ("bo", "cy")
    assert [held.header.author for held in vault.versions(after.id)] == ["bo", "", "bo"]
    assert [event.actor for event in vault.history(after.id)] == ["bo", "", "bo"]
    assert texts(vault.readable("cy")) == ["bo's again"]
    vault.restore_snapshot("bo", "tuesday", actor="bo")
    assert texts(vault.list("bo")) == ["bo's, by maya"] and vault.readable(SECRET) == []


def test_the_log_tells_that_and_how_much_but_not_whom(vault: Vault) -> None:
    vault.forget(SECRET, actor="admin")
    (entry,) = vault.log(LogQuery(action="forget"))
    assert entry.actor == "admin" and entry.owner.startswith("forgotten:") and entry.detail["cubes"] == 2
    assert SECRET not in str(vault.log(LogQuery(limit=1000)))


def test_a_person_may_forget_themselves_and_come_back(vault: Vault) -> None:
    vault.forget(SECRET, actor=SECRET)
    assert vault.traces_of(SECRET) == {} == vault.traces_anywhere(SECRET)
    add(vault, "new", owner=SECRET)
    assert texts(vault.list(SECRET)) == ["new"]
    with pytest.raises(NotFound):
        vault.restore_snapshot(SECRET, "monday", actor=SECRET)


def test_forgetting_a_stranger_changes_nothing_but_the_log(vault: Vault) -> None:
    held = vault.list("bo"), vault.list(SECRET)
    report = vault.forget("stranger", actor="admin")
    assert report == type(report)(0, 0, (), 0, 0, 0, 0, 0, report.log_names)
    assert (vault.list("bo"), vault.list(SECRET)) == held and vault.traces_of("stranger") == {}


def test_what_was_given_away_stays_with_its_new_owner(vault: Vault) -> None:
    (cube,) = add(vault, "a present", owner=SECRET)
    (given,) = vault.pipeline([TransferStep(cube.id, "bo")], actor=SECRET)
    vault.forget(SECRET, actor="admin")
    assert vault.get(given.id).text == "a present" and vault.get(given.id).header.author == ""
    assert vault.traces_of(SECRET) == {} == vault.traces_anywhere(SECRET)


def test_what_was_under_way_is_refused(vault: Vault) -> None:
    before = time.time()
    piece = msgspec.structs.replace(kv_for(vault, vault.list("bo")[0], "q"), cube_id="", owner=SECRET, kind="piece")
    vault.forget(SECRET, actor="admin")
    steps = [AddStep(MemCube.plaintext("late", owner=SECRET))]
    with pytest.raises(Forgotten):
        vault.pipeline(steps, actor=SECRET, since=before)
    with pytest.raises(Forgotten):
        vault.put_kv(piece, since=before)
    with pytest.raises(Forgotten):
        vault.pipeline(steps, actor="bo", since=before - 2 * forgotten.KEPT)
    vault.record_all([Noted(SECRET, "read"), Noted("bo", "read", owner=SECRET), Noted("bo", "read")], since=before)
    assert [entry.actor for entry in vault.log(LogQuery(action="read"))] == ["bo"]
    assert vault.traces_anywhere(SECRET) == {}
    vault.pipeline(steps, actor=SECRET, since=time.time())
    assert texts(vault.list(SECRET)) == ["late"]


def test_forgetting_reads_each_snapshot_once(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    add(vault, *(f"bo's {n}" for n in range(20)), owner="bo", access=(SECRET,))
    vault.snapshot("bo", "many", actor="bo")
    sized: list[bytes] = []
    size = snapshots._size

    def counting(txn: Txn, key: bytes) -> tuple[int, int]:
        sized.append(key)
        return size(txn, key)

    monkeypatch.setattr(snapshots, "_size", counting)
    vault.forget(SECRET, actor="admin")
    assert len(sized) == 2


def test_a_file_that_cannot_be_removed_is_a_trace(vault: Vault) -> None:
    file = vault.path / "kv/k.safetensors"
    file.unlink()
    file.mkdir()
    vault.forget(SECRET, actor="admin")
    assert vault.traces_of(SECRET) == {"doomed": 1}
    file.rmdir()
    with Vault.open(vault.path) as again:
        assert again.traces_of(SECRET) == {}


@pytest.mark.parametrize("whole", [True, False], ids=["forget", "delete_owner"])
def test_a_removal_that_is_cut_short_is_finished_at_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr("memos_vllm.vault.base.STEP", 3)
    monkeypatch.setattr("memos_vllm.vault.forgetting.STEP", 3)
    steps = iter(range(2))

    def change(vault: Vault, work: Callable[[Txn], object], **how: bool) -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return changed(vault, work, **how)

    with Vault.open(path) as vault:
        add(vault, *(f"tea {n}" for n in range(10)), owner="maya")
        (theirs,) = add(vault, "rain", owner="bo", access=("maya",))
        changed = Vault._change
        monkeypatch.setattr(Vault, "_change", change)
        with pytest.raises(KeyboardInterrupt):
            vault.forget("maya", actor="ops") if whole else vault.delete_owner("maya", actor="ops")
        monkeypatch.setattr(Vault, "_change", changed)
        assert len(vault.list("maya")) == 4 and vault.check() == []
        (later,) = add(vault, "milk", owner="maya")
    with Vault.open(path) as vault:
        assert vault.list("maya") == ([] if whole else [later])
        assert vault.list("bo") == ([vault.get(theirs.id)])
        assert bool(vault.traces_anywhere("maya")) != whole
        assert len(vault.log(LogQuery(action="forget"))) == whole
        assert vault._env.read(removals.under_way) == [] and vault.check() == []
    with Vault.open(path) as vault:
        assert len(vault.log(LogQuery(action="forget"))) == whole, "once"
