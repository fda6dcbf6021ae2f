import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from memos_vllm.cube import MemCube, new_id
from memos_vllm.errors import BadInput, Conflict, MemosError, NotAVault, NotFound, TooLarge, VaultFull, VaultUnavailable
from memos_vllm.vault import Event, KVRecord, Vault

TINY_MAP = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    with Vault.open(path) as vault:
        yield vault
        assert vault.check() == []


def add(vault: Vault, *texts: str, owner: str = "maya", access: tuple[str, ...] = ()) -> list[MemCube]:
    return vault.add([MemCube.plaintext(text, owner=owner, access=access) for text in texts], actor=owner)


def kv_for(vault: Vault, cube: MemCube, key: str) -> KVRecord:
    """A manifest row with its file."""
    file = vault.path / "kv" / f"{key}.safetensors"
    file.write_bytes(b"K" * 10)
    return KVRecord(
        key=key,
        owner=cube.owner,
        cube_id=cube.id,
        cube_version=cube.version,
        path=f"kv/{file.name}",
        tokens=5,
        bytes=10,
        checksum="",
        created=cube.header.created,
        build_seconds=0.5,
    )


def texts(cubes: list[MemCube]) -> list[str]:
    return [cube.text for cube in cubes]


# cubes


def test_added_cubes_come_back_after_a_restart(path: Path) -> None:
    with Vault.open(path) as vault:
        cubes = add(vault, "a", "b")
    with Vault.open(path, readonly=True) as vault:
        assert [vault.get(cube.id) for cube in cubes] == cubes
        assert vault.list("maya") == cubes
    assert cubes[0].header.author == "maya" and cubes[0].version == 1


def test_an_add_is_all_or_nothing(vault: Vault) -> None:
    first = add(vault, "a")[0]
    with pytest.raises(Conflict):
        vault.add([MemCube.plaintext("b", owner="maya"), first], actor="maya")
    with pytest.raises(BadInput, match="owner"):
        vault.add([MemCube.plaintext("b", owner="maya"), MemCube.plaintext("c", owner="")], actor="maya")
    assert vault.list("maya") == [first]
    assert vault.add([], actor="maya") == []


def test_an_id_is_never_used_again(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    vault.delete(cube.id, actor="maya")
    with pytest.raises(Conflict):
        vault.add([cube], actor="maya")


def test_updates_make_versions(vault: Vault) -> None:
    cube = vault.add([MemCube.plaintext("tea", owner="maya", metadata={"a": 1, "b": 2})], actor="maya")[0]
    vault.update(cube.id, "milk", actor="bo", operation="append", metadata={"b": 3})
    vault.update(cube.id, "TEA\nsugar", actor="maya", operation="merge")
    last = vault.update(cube.id, "water", actor="maya")
    assert last.version == 4 and last.header.operation == "overwrite"
    assert last.header.metadata == {"a": 1, "b": 3}
    assert last.header.created == cube.header.created and last.header.updated > cube.header.updated
    held = [vault.get(cube.id, version=n) for n in (1, 2, 3, 4)]
    assert texts(held) == ["tea", "tea\nmilk", "tea\nmilk\nsugar", "water"]
    assert held[1].header.author == "bo" and vault.get(cube.id) == held[3] == last
    assert vault.list("maya") == [last]


def test_updates_that_are_refused(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    header = msgspec.structs.replace(cube.header, id=new_id(), state="frozen")
    frozen = vault.add([MemCube(header, cube.payload)], actor="maya")[0]
    with pytest.raises(Conflict, match="frozen"):
        vault.update(frozen.id, "b", actor="maya")
    with pytest.raises(BadInput):
        vault.update(cube.id, "  ", actor="maya")
    with pytest.raises(BadInput):
        vault.update(cube.id, "b", actor="maya", operation="replace")  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        vault.update(cube.id, "b" * (1 << 20), actor="maya", operation="append")
    assert vault.get(cube.id) == cube


@pytest.mark.parametrize("cube_id", ["", "x", "0" * 32, "../../etc/passwd", "Ä" * 32, "\ud800"])
def test_unknown_ids(vault: Vault, cube_id: str) -> None:
    for call in (vault.get, vault.history):
        with pytest.raises(NotFound):
            call(cube_id)
    with pytest.raises(NotFound):
        vault.update(cube_id, "x", actor="maya")
    with pytest.raises(NotFound):
        vault.delete(cube_id, actor="maya")


def test_versions_that_do_not_exist(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    for version in (-1, 0, 2, 2**40):
        with pytest.raises(NotFound, match="versions 1 to 1"):
            vault.get(cube.id, version=version)


def test_lists_are_paged_in_id_order(vault: Vault) -> None:
    cubes = add(vault, *(f"n{n}" for n in range(7)))
    add(vault, "other", owner="bo")
    assert vault.list("maya") == sorted(cubes, key=lambda cube: cube.id)
    pages = []
    after = ""
    while page := vault.list("maya", limit=3, after=after):
        pages.append(len(page))
        after = page[-1].id
    assert pages == [3, 3, 1]
    with pytest.raises(BadInput):
        vault.list("maya", after="zz")


def test_readable_is_owned_and_granted(vault: Vault) -> None:
    add(vault, "private")
    add(vault, "shared", access=("bo", "cy"))
    add(vault, "bo's", owner="bo")
    assert set(texts(vault.readable("bo"))) == {"shared", "bo's"}
    assert set(texts(vault.readable("maya"))) == {"private", "shared"}
    assert texts(vault.readable("cy")) == ["shared"] and vault.list("cy") == []


def test_owners_whose_names_share_a_prefix_are_apart(vault: Vault) -> None:
    names = ["a", "aa", "a" * 128, "é" * 128, "🦊" * 128]
    for name in names:
        add(vault, name, owner=name)
    assert [texts(vault.list(name)) for name in names] == [[name] for name in names]


def test_the_revision_grows_for_everyone_concerned(vault: Vault) -> None:
    def revisions() -> tuple[int, ...]:
        return tuple(vault.revision(name) for name in ("maya", "bo", "cy"))

    assert revisions() == (0, 0, 0)
    cube = add(vault, "a", access=("bo",))[0]
    assert revisions() == (1, 1, 0)
    vault.update(cube.id, "b", actor="maya")
    assert revisions() == (2, 2, 0)
    vault.delete(cube.id, actor="maya")
    assert revisions() == (3, 3, 0)


def test_history_tells_who_changed_what(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    vault.update(cube.id, "b", actor="bo")
    steps = [(e.version, e.operation, e.actor, e.old_text, e.new_text) for e in vault.history(cube.id)]
    assert steps == [(1, "add", "maya", None, "a"), (2, "update", "bo", "a", "b")]


def test_deleting_leaves_no_text(path: Path) -> None:
    secret = "the-door-code-is-4711"
    with Vault.open(path) as vault:
        cube = add(vault, secret)[0]
        vault.update(cube.id, f"{secret}-and-more", actor="maya")
        vault.delete(cube.id, actor="bo")
        events = vault.history(cube.id)
        assert [(e.operation, e.actor, e.old_text, e.new_text) for e in events] == [
            ("add", "maya", None, None),
            ("update", "maya", None, None),
            ("delete", "bo", None, None),
        ]
        assert vault.stats()["cubes"] == vault.stats()["versions"] == 0
        assert vault.list("maya") == vault.readable("maya") == []
        for version in (None, 1, 2):
            with pytest.raises(NotFound):
                vault.get(cube.id, version=version)
        assert vault.check() == []


def test_delete_owner_takes_all_of_one_owner(vault: Vault) -> None:
    gone = add(vault, "a", "b", access=("bo",))
    kept = add(vault, "c", owner="bo")
    vault.put_kv(kv_for(vault, gone[0], "k1"))
    assert vault.delete_owner("maya", actor="admin") == (2, ["k1"])
    assert vault.readable("bo") == kept
    assert vault.delete_owner("maya", actor="admin") == (0, [])


# KV manifest


def test_manifest_rows_follow_their_cube(vault: Vault) -> None:
    cube, other = add(vault, "a", "b")
    record = kv_for(vault, cube, "k1")
    vault.put_kv(record)
    vault.put_kv(kv_for(vault, other, "k2"))
    assert vault.get_kv("k1") == record and vault.kv_of(cube.id) == [record]
    assert {row.key for row in vault.iter_kv()} == {"k1", "k2"}
    assert vault.stats()["kv"] == 2 and vault.stats()["kv_bytes"] == 20
    assert vault.delete(cube.id, actor="maya") == ["k1"]
    assert vault.get_kv("k1") is None and not (vault.path / record.path).exists()
    assert (vault.path / "kv/k2.safetensors").exists()
    dropped = vault.drop_kv("k2")
    assert dropped is not None and dropped.key == "k2" and vault.drop_kv("k2") is None
    assert list((vault.path / "kv").iterdir()) == []


def test_two_cubes_with_the_same_kv(vault: Vault) -> None:
    first, second = add(vault, "same", "same")
    vault.put_kv(kv_for(vault, first, "k"))
    record = kv_for(vault, second, "k")
    vault.put_kv(record)
    assert vault.kv_of(first.id) == [] and vault.kv_of(second.id) == [record]
    assert vault.delete(first.id, actor="maya") == []
    assert vault.get_kv("k") == record
    assert vault.delete(second.id, actor="maya") == ["k"]


def test_a_manifest_row_needs_a_current_cube_and_a_file(vault: Vault) -> None:
    cube = add(vault, "a")[0]
    record = kv_for(vault, cube, "k")
    refused: list[tuple[type[MemosError], dict[str, Any]]] = [
        (NotFound, {"cube_id": new_id()}),
        (Conflict, {"cube_version": 2}),
        (Conflict, {"owner": "bo"}),
        (Conflict, {"path": "kv/none"}),
        (BadInput, {"path": "kv/../memos.json"}),
        (BadInput, {"path": "/etc/passwd"}),
        (BadInput, {"path": "kv"}),
    ]
    for error, change in refused:
        with pytest.raises(error):
            vault.put_kv(msgspec.structs.replace(record, **change))
    assert vault.iter_kv() == []
    (vault.path / record.path).unlink()


def test_files_of_deleted_cubes_go_at_the_next_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Vault.open(path) as vault:
        cube = add(vault, "a")[0]
        file = path / kv_for(vault, cube, "k").path
        vault.put_kv(kv_for(vault, cube, "k"))
        # A crash between the commit and the removal of the file.
        monkeypatch.setattr(Vault, "_bury", lambda self: None)
        vault.delete(cube.id, actor="maya")
        assert file.exists() and "still there" in vault.check()[0]
    monkeypatch.undo()
    with Vault.open(path) as vault:
        assert not file.exists() and vault.check() == []


# the folder


def test_a_new_folder_is_marked(path: Path) -> None:
    Vault.open(path).close()
    assert json.loads((path / "memos.json").read_text()) == {"format": "memos-vault", "schema": 1}
    assert {entry.name for entry in path.iterdir()} == {"memos.json", "vault", "kv"}
    assert path.stat().st_mode & 0o077 == (path / "vault" / "data.mdb").stat().st_mode & 0o077 == 0


def test_a_start_that_was_cut_short_is_resumed(path: Path) -> None:
    path.mkdir()
    (path / "memos.json.new").touch()
    (path / "vault").mkdir()
    (path / "lost+found").mkdir()
    with Vault.open(path) as vault:
        assert vault.check() == []


@pytest.mark.parametrize(
    ("marker", "named"),
    [
        (None, "notes.txt"),
        ("", "not JSON"),
        ("[]", "does not mark"),
        ('{"format": "other", "schema": 1}', "does not mark"),
        ('{"format": "memos-vault"}', "does not mark"),
        ('{"format": "memos-vault", "schema": 99}', "upgrade"),
        ('{"format": "memos-vault", "schema": 1}', "missing or empty"),
    ],
)
def test_other_folders_are_refused_and_left_alone(path: Path, marker: str | None, named: str) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("mine")
    if marker is not None:
        (path / "memos.json").write_text(marker)
    before = {entry.name for entry in path.iterdir()}
    with pytest.raises(NotAVault, match=named):
        Vault.open(path)
    assert {entry.name for entry in path.iterdir()} == before


def test_a_file_or_nothing_is_refused(path: Path) -> None:
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path, readonly=True)
    path.mkdir()
    with pytest.raises(NotAVault, match="no vault"):
        Vault.open(path, readonly=True)
    (path / "file").touch()
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path / "file")
    with pytest.raises(NotAVault, match="no folder"):
        Vault.open(path / "file" / "below")


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "zeros"])
def test_a_damaged_data_file_is_refused(path: Path, damage: str) -> None:
    with Vault.open(path) as vault:
        add(vault, *(f"memory {n} {'x' * 500}" for n in range(200)))
    data = path / "vault" / "data.mdb"
    size = data.stat().st_size
    if damage == "garbage":
        data.write_bytes(os.urandom(size))
    elif damage == "zeros":
        with data.open("r+b") as file:
            file.seek(4 * 4096)
            file.write(bytes(size - 4 * 4096))
    else:
        os.truncate(data, 0 if damage == "empty" else size // 2)
    with pytest.raises(NotAVault, match=r"data\.mdb|damaged"):
        Vault.open(path)


def test_one_process_may_open_a_vault_twice(path: Path) -> None:
    with Vault.open(path) as first, Vault.open(path, readonly=True) as second:
        cube = add(first, "a")[0]
        assert second.get(cube.id) == cube
        with pytest.raises(VaultUnavailable, match="reading only"):
            add(second, "b")
        first.close()
        first.close()
        assert second.get(cube.id) == cube
    with pytest.raises(VaultUnavailable, match="closed"):
        second.get(cube.id)
    with Vault.open(path, readonly=True), pytest.raises(VaultUnavailable, match="reading only"):
        Vault.open(path)


def test_a_fork_may_not_use_the_vault(path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from memos_vllm.errors import VaultUnavailable
from memos_vllm.vault import Vault
vault = Vault.open(Path(sys.argv[1]))
if os.fork() == 0:
    for call in (lambda: vault.list("maya"), lambda: Vault.open(Path(sys.argv[1]))):
        try:
            call()
        except VaultUnavailable as error:
            print(error, flush=True)
    vault.close()
    os._exit(0)
os.wait()
print(vault.list("maya"))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert [("fork" in line) for line in lines] == [True, True, False] and lines[2] == "[]", done


# growth and limits


def test_the_map_grows(path: Path) -> None:
    with Vault.open(path, map_bytes=TINY_MAP) as vault:
        cubes = add(vault, *("x" * 3000 for _ in range(500)))
        assert vault.stats()["map_bytes"] > 500 * 3000
        assert vault.list("maya") == cubes and vault.check() == []


def test_the_map_grows_under_readers_and_writers(path: Path) -> None:
    errors: list[BaseException] = []

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    with Vault.open(path, map_bytes=TINY_MAP) as vault:
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                assert all(len(cube.text) == 5000 for cube in vault.list("maya", limit=20))

        def write() -> None:
            for _ in range(60):
                add(vault, "x" * 5000)

        readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(3)]
        writers = [threading.Thread(target=guarded, args=(write,)) for _ in range(3)]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        for thread in readers:
            thread.join()
        assert errors == []
        assert len(vault.list("maya")) == 180 and vault.check() == []


WRITER = """
import sys
from pathlib import Path
from memos_vllm.cube import MemCube
from memos_vllm.vault import Vault
owner = sys.argv[2]
with Vault.open(Path(sys.argv[1]), map_bytes=65536) as vault:
    for n in range(40):
        cube = vault.add([MemCube.plaintext(f"{n} " + "x" * 3000, owner=owner, access=["all"])], actor=owner)[0]
        vault.update(cube.id, f"{n}", actor=owner, operation="append")
        if n % 4 == 3:
            vault.delete(cube.id, actor=owner)
"""


def test_several_processes_write_at_once(path: Path) -> None:
    """Each opens a vault that is not there yet, and grows its map under the others."""
    names = [f"user{n}" for n in range(4)]
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(path), name], stderr=subprocess.PIPE)
        for name in names
    ]
    failures = [process.communicate(timeout=120)[1] for process in running]
    assert failures == [b""] * 4
    with Vault.open(path, map_bytes=TINY_MAP) as vault:
        assert vault.check() == []
        assert [len(vault.list(name)) for name in names] == [30] * 4
        assert len(vault.readable("all")) == 120 and vault.revision("all") == 4 * 90


def test_a_full_vault_loses_nothing_and_can_be_emptied(path: Path) -> None:
    with Vault.open(path, map_bytes=TINY_MAP, max_bytes=1 << 20) as vault:
        held: list[MemCube] = []
        with pytest.raises(VaultFull, match="1048576"):
            while True:
                held += add(vault, "x" * 4000)
        assert len(held) > 50
        with pytest.raises(VaultFull):
            add(vault, *("y" * 4000 for _ in range(20)))
        assert vault.list("maya") == held and vault.check() == []
        for cube in held[:40]:
            vault.delete(cube.id, actor="maya")
        assert vault.stats()["map_bytes"] <= (1 << 20) + (1 << 18)
        held = held[40:] + add(vault, *("z" * 4000 for _ in range(10)))
        assert vault.list("maya") == held and vault.check() == []
        assert vault.delete_owner("maya", actor="maya")[0] == len(held)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_can_be_emptied(small_disk: Path) -> None:
    with Vault.open(small_disk / "memory") as vault:
        held: list[MemCube] = []
        with pytest.raises(VaultFull, match="disk"):
            while True:
                held += add(vault, "x" * 4000)
        assert len(held) > 50 and vault.list("maya") == held and vault.check() == []
        with pytest.raises(VaultFull):
            add(vault, *("y" * 4000 for _ in range(50)))
        for cube in held[:20]:
            vault.delete(cube.id, actor="maya")
        held = held[20:] + add(vault, "z" * 4000)
    with Vault.open(small_disk / "memory") as vault:
        assert vault.list("maya") == held and vault.check() == []


# against a model

OWNERS = ("maya", "bo", "cy")
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


class VaultMachine(RuleBasedStateMachine):
    """Whatever the sequence of calls and restarts, the vault tells what a dict of texts would."""

    cubes = Bundle("cubes")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "memory"
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)
        self.texts: dict[str, list[str]] = {}
        self.owner: dict[str, str] = {}
        self.granted: dict[str, set[str]] = {}
        self.kv: dict[str, str] = {}
        self.revisions = dict.fromkeys(OWNERS, 0)

    @rule(target=cubes, owner=st.sampled_from(OWNERS), access=st.sets(st.sampled_from(OWNERS)), text=TEXTS)
    def add(self, owner: str, access: set[str], text: str) -> str:
        cube = MemCube.plaintext(text, owner=owner, access=sorted(access))
        self.vault.add([cube], actor=owner)
        self.texts[cube.id], self.owner[cube.id], self.granted[cube.id] = [text], owner, access - {owner}
        self._touch(cube.id)
        return cube.id

    @rule(cube_id=cubes, text=TEXTS)
    def update(self, cube_id: str, text: str) -> None:
        if cube_id not in self.texts:
            with pytest.raises(NotFound):
                self.vault.update(cube_id, text, actor="x")
            return
        self.vault.update(cube_id, text, actor="x")
        self.texts[cube_id].append(text)
        self._touch(cube_id)

    @rule(cube_id=cubes, key=st.sampled_from(["k1", "k2"]))
    def put_kv(self, cube_id: str, key: str) -> None:
        if cube_id in self.texts:
            self.vault.put_kv(kv_for(self.vault, self.vault.get(cube_id), key))
            self.kv[key] = cube_id

    @rule(cube_id=consumes(cubes))
    def delete(self, cube_id: str) -> None:
        if cube_id in self.texts:
            self._forget([cube_id])
            keys = self.vault.delete(cube_id, actor="x")
            assert set(keys) == {key for key, owner in self.kv.items() if owner == cube_id}
            self.kv = {key: owner for key, owner in self.kv.items() if owner != cube_id}
            assert [event.new_text for event in self.vault.history(cube_id)] == [None] * len(self.vault.history(cube_id))

    @rule(owner=st.sampled_from(OWNERS))
    def delete_owner(self, owner: str) -> None:
        gone = [cube_id for cube_id in self.texts if self.owner[cube_id] == owner]
        self._forget(gone)
        assert self.vault.delete_owner(owner, actor="x")[0] == len(gone)
        self.kv = {key: cube_id for key, cube_id in self.kv.items() if cube_id not in gone}

    @rule()
    def restart(self) -> None:
        self.vault.close()
        self.vault = Vault.open(self.path, map_bytes=TINY_MAP)

    def _forget(self, cube_ids: list[str]) -> None:
        for cube_id in cube_ids:
            del self.texts[cube_id]
            self._touch(cube_id)

    def _touch(self, cube_id: str) -> None:
        """A change of this cube must raise the revision of all its readers."""
        for principal in {self.owner[cube_id], *self.granted[cube_id]}:
            self.revisions[principal] = -abs(self.revisions[principal]) or -1

    @invariant()
    def lists_agree(self) -> None:
        for name in OWNERS:
            owned = {cube_id: held[-1] for cube_id, held in self.texts.items() if self.owner[cube_id] == name}
            granted = {cube_id: held[-1] for cube_id, held in self.texts.items() if name in self.granted[cube_id]}
            assert {cube.id: cube.text for cube in self.vault.list(name)} == owned
            assert {cube.id: cube.text for cube in self.vault.readable(name)} == owned | granted

    @invariant()
    def histories_agree(self) -> None:
        for cube_id, held in self.texts.items():
            events: list[Event] = self.vault.history(cube_id)
            assert [event.new_text for event in events] == held
            assert [event.old_text for event in events] == [None, *held[:-1]]

    @invariant()
    def manifest_and_files_agree(self) -> None:
        assert {record.key: record.cube_id for record in self.vault.iter_kv()} == self.kv
        assert {file.stem for file in (self.path / "kv").iterdir()} == set(self.kv)

    @invariant()
    def revisions_grow(self) -> None:
        for name in OWNERS:
            revision = self.vault.revision(name)
            seen = self.revisions[name]
            assert revision > -seen - (seen == -1) if seen < 0 else revision == seen
            self.revisions[name] = revision

    @invariant()
    def the_vault_is_sound(self) -> None:
        assert self.vault.check() == []

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.close()
            self.folder.cleanup()


VaultMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
test_the_vault_agrees_with_a_model = VaultMachine.TestCase
