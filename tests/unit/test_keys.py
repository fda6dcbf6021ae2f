"""Keys, groups and quotas of a real vault, through the command line and through the rules a server reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memos_vllm import cli
from memos_vllm.cube import MemCube
from memos_vllm.errors import BadInput, Conflict, NotFound, Unauthorized
from memos_vllm.governance import KeyRing, groups, keys, quota
from memos_vllm.governance.directory import MAX_AGE, Directory
from memos_vllm.governance.identity import NOBODY, Bearer
from memos_vllm.governance.quota import Limits, Quota
from memos_vllm.vault import LogQuery, Vault


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault.open(tmp_path / "memory")


def ring_of(vault: Vault) -> KeyRing:
    directory = Directory(vault)
    directory.refresh()
    return KeyRing(directory=directory)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_key_is_shown_once_and_kept_as_a_hash(vault: Vault) -> None:
    key_id, key = keys.create(vault, user="maya", name="laptop", actor="operator:cy")
    secret = key.split("_", 2)[2]
    vault.close()
    stored = b"".join(path.read_bytes() for path in vault.path.rglob("*") if path.is_file())
    assert key_id.encode() in stored
    assert key.encode() not in stored and secret.encode() not in stored


def test_a_key_speaks_for_its_user(vault: Vault) -> None:
    _, key = keys.create(vault, user="maya", roles=["reader"], clearance=["health"], actor="a")
    _, service = keys.create(vault, actor="a")
    ring = ring_of(vault)
    bearer = ring.bearer(key)
    assert (bearer.user, bearer.roles, bearer.clearance) == ("maya", ("reader",), ("health",))
    assert ring.bearer(service).user == ""


def test_every_key_is_another(vault: Vault) -> None:
    made = {keys.create(vault, user="maya", actor="a")[1] for _ in range(20)}
    assert len(made) == 20
    assert all(len(key.split("_", 2)[2]) == 43 for key in made)  # 256 bits in base64


@pytest.mark.parametrize("change", [lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"), lambda key: key + "A"])
def test_a_key_that_is_nearly_right_is_wrong(vault: Vault, change: object) -> None:
    _, key = keys.create(vault, user="maya", actor="a")
    ring = ring_of(vault)
    with pytest.raises(Unauthorized, match="not known"):
        ring.bearer(change(key))  # type: ignore[operator]


def test_the_first_key_makes_keys_required_for_good(vault: Vault) -> None:
    assert not ring_of(vault).required
    assert ring_of(vault).bearer("anything") == NOBODY
    key_id, key = keys.create(vault, user="maya", actor="a")
    keys.revoke(vault, key_id, actor="a")
    ring = ring_of(vault)
    assert ring.required
    with pytest.raises(Unauthorized, match="revoked"):
        ring.bearer(key)
    vault.forget("maya", actor="a")
    assert keys.listed(vault) == {}
    with pytest.raises(Unauthorized):
        ring_of(vault).bearer(None)


def test_only_a_persons_own_keys_go_when_they_are_forgotten(vault: Vault) -> None:
    key_id, key = keys.create(vault, user="maya", roles=["admin"], clearance=["health"], actor="a")
    for name in (key_id, "admin", "health", "key", "group:staff"):
        vault.forget(name, actor="a")
    assert ring_of(vault).bearer(key) == Bearer("maya", ("admin",), ("health",), key_id)
    assert ring_of(vault).required


def test_a_key_ends(vault: Vault) -> None:
    _, old = keys.create(vault, user="maya", expires="2020-01-01", actor="a")
    _, new = keys.create(vault, user="maya", expires="2120-01-01", actor="a")
    ring = ring_of(vault)
    assert ring.bearer(new).user == "maya"
    with pytest.raises(Unauthorized, match="expired"):
        ring.bearer(old)
    with pytest.raises(BadInput, match="--expires"):
        keys.create(vault, user="maya", expires="soon", actor="a")


def test_a_revoked_key_stays_revoked(vault: Vault) -> None:
    key_id, _ = keys.create(vault, user="maya", actor="a")
    first = keys.revoke(vault, key_id, actor="a")
    assert keys.revoke(vault, key_id, actor="a") == first
    with pytest.raises(NotFound, match="key list"):
        keys.revoke(vault, "nothing", actor="a")


def test_a_file_and_a_vault_give_keys_side_by_side(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[[key]]\nkey = "sk-file"\nuser = "bo"\n')
    _, key = keys.create(vault, user="maya", actor="a")
    directory = Directory(vault)
    directory.refresh()
    ring = KeyRing.load(path, directory)
    assert (ring.bearer("sk-file").user, ring.bearer(key).user) == ("bo", "maya")
    with pytest.raises(Unauthorized):
        ring.bearer("sk-other")


def test_a_directory_sees_changes_within_its_age(vault: Vault) -> None:
    clock = Clock()
    directory = Directory(vault, Limits(cubes=10, rps=5.0), clock)
    assert directory.is_stale()
    directory.refresh()
    groups.add(vault, "staff", ["maya", "bo"], actor="a")
    quota.put(vault, "maya", Quota(cubes=3, rps=0), actor="a")
    directory.refresh()
    assert directory.groups_of("maya") == () and not directory.is_stale()
    clock.now += MAX_AGE + 0.01
    assert directory.is_stale()
    directory.refresh()
    assert directory.groups_of("maya") == ("staff",)
    assert directory.limits_of("maya") == Limits(cubes=3, rps=None)
    assert directory.limits_of("bo") == Limits(cubes=10, rps=5.0)


def test_a_directory_is_confirmed_only_where_nothing_changed(vault: Vault) -> None:
    clock = Clock()
    directory = Directory(vault, clock=clock)
    assert not directory.confirm(), "it has never been read"
    directory.refresh()
    for change in (False, True):
        clock.now += MAX_AGE + 0.01
        if change:
            groups.add(vault, "staff", ["maya"], actor="a")
        assert directory.confirm() is not change and directory.is_stale() is change
    directory.refresh()
    assert directory.groups_of("maya") == ("staff",) and directory.confirm()
    clock.now += MAX_AGE + 0.01
    vault.close()
    assert not directory.confirm() and directory.is_stale(), "of a vault that fails nothing is known"


def test_a_group_of_the_same_name_inherits_nothing(vault: Vault) -> None:
    groups.add(vault, "staff", ["maya"], actor="a")
    (shared,) = vault.add([MemCube.plaintext("tea", owner="maya", access=["group:staff"])], actor="maya")
    (own,) = vault.add([MemCube.plaintext("milk", owner="group:staff")], actor="maya")
    with pytest.raises(Conflict, match="owns memories"):
        groups.remove(vault, "staff", [], actor="a")
    vault.delete(own.id, actor="maya")
    assert groups.remove(vault, "staff", [], actor="a") is None
    groups.add(vault, "staff", ["eve"], actor="a")
    assert vault.readable("group:staff") == [] and vault.get(shared.id).readers() == ("maya",)
    assert vault.log(LogQuery(owner="group:staff")) == []


def test_groups(vault: Vault) -> None:
    groups.add(vault, "staff", ["maya"], actor="a")
    groups.add(vault, "staff", ["bo", "maya"], actor="a")
    assert groups.listed(vault)["staff"].members == ("bo", "maya")
    groups.remove(vault, "staff", ["maya"], actor="a")
    assert groups.listed(vault)["staff"].members == ("bo",)
    for name, users in (("board", []), ("staff", ["cy"])):
        with pytest.raises(NotFound):
            groups.remove(vault, name, users, actor="a")
    for bad in ("group:staff", "", "x" * 128, "a\nb"):
        with pytest.raises(BadInput):
            groups.add(vault, bad, ["maya"], actor="a")
    with pytest.raises(BadInput):
        groups.add(vault, "staff", ["group:board"], actor="a")
    assert groups.remove(vault, "staff", [], actor="a") is None and groups.listed(vault) == {}


def test_a_group_made_anew_inherits_nothing(vault: Vault) -> None:
    groups.add(vault, "staff", ["maya"], actor="a")
    shared = MemCube.plaintext("the rota", owner="bo", access=["group:staff", "cy"])
    own = MemCube.plaintext("the key", owner="group:staff")
    vault.add([shared], actor="bo")
    vault.add([own], actor="maya")
    with pytest.raises(Conflict, match="owns memories"):
        groups.remove(vault, "staff", [], actor="a")
    vault.delete(own.id, actor="maya")
    groups.remove(vault, "staff", [], actor="a")
    groups.add(vault, "staff", ["eve"], actor="a")
    assert vault.readable("group:staff") == [] and vault.get(shared.id).readers() == ("bo", "cy")


def test_a_forgotten_member_is_in_no_group(vault: Vault) -> None:
    groups.add(vault, "staff", ["maya", "bo"], actor="a")
    vault.forget("maya", actor="a")
    assert groups.listed(vault)["staff"].members == ("bo",)


def test_what_governs_is_in_the_audit_log_without_secrets(vault: Vault) -> None:
    key_id, key = keys.create(vault, user="maya", actor="operator:cy")
    groups.add(vault, "staff", ["maya"], actor="operator:cy")
    quota.put(vault, "maya", Quota(cubes=3), actor="operator:cy")
    log = vault.log(LogQuery(actor="operator:cy"))
    assert [(entry.action, entry.target) for entry in log] == [
        ("policy.put", "key"),
        ("key.put", key_id),
        ("group.put", "group:staff"),
        ("quota.put", "maya"),
    ]
    assert key.split("_", 2)[2] not in repr(log) and vault.verify_log() == []


def test_the_key_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "memory")
    code, out, err = run(capsys, "key", "create", folder, "--user", "maya", "--name", "laptop", "--role", "reader")
    key = out.strip()
    assert code == 0 and out.count("\n") == 1 and "From now on" in err
    code, out, _ = run(capsys, "key", "list", folder)
    assert code == 0 and "maya" in out and "live" in out and key not in out and key.split("_", 2)[2] not in out
    (listed,) = [json.loads(line) for line in run(capsys, "key", "list", folder, "--json")[1].splitlines()]
    assert listed["id"] == key.split("_")[1] and listed["roles"] == ["reader"] and "sha256" not in listed
    assert run(capsys, "key", "revoke", folder, listed["id"])[0] == 0
    assert '"revoked"' in run(capsys, "key", "list", folder, "--json")[1]
    code, _, err = run(capsys, "key", "revoke", folder, "nothing")
    assert code == 2 and err.count("\n") == 1
    assert "no key" in run(capsys, "key", "require", folder, "off")[1]
    with Vault.open(Path(folder)) as vault:
        assert not keys.required(vault)


@pytest.mark.parametrize(
    "words",
    [
        ("create", "DIR"),
        ("create", "DIR", "--user", "a", "--service"),
        ("create", "DIR", "--user", "a", "--role", "boss"),
        ("revoke", "DIR"),
    ],
)
def test_the_key_command_refuses(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["key", *(str(tmp_path / "memory") if word == "DIR" else word for word in words)])
    assert caught.value.code == 2


def test_the_group_and_quota_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "memory")
    Vault.open(tmp_path / "memory").close()
    assert run(capsys, "group", "add", folder, "staff", "maya", "bo")[:2] == (0, "staff: bo, maya\n")
    assert run(capsys, "group", "remove", folder, "staff", "bo")[:2] == (0, "staff: maya\n")
    assert '"members":["maya"]' in run(capsys, "group", "list", folder, "--json")[1]
    assert "maya" in run(capsys, "group", "list", folder)[1]
    assert run(capsys, "quota", "set", folder, "maya", "--cubes", "3", "--rps", "0")[0] == 0
    assert "3 memories, no limit of requests/s" in run(capsys, "quota", "list", folder)[1]
    assert run(capsys, "quota", "set", folder, "maya")[0] == 2
    assert run(capsys, "quota", "set", folder, "maya", "--cubes", "-1")[0] == 2
    assert "hold again" in run(capsys, "quota", "clear", folder, "maya")[1]
    assert "had no limits" in run(capsys, "quota", "clear", folder, "maya")[1]
