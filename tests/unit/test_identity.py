import hashlib
from pathlib import Path

import pytest

from memos_vllm.errors import BadInput, Forbidden, StartError, Unauthorized
from memos_vllm.governance import Caller, KeyRing, caller_of, checked_user

HASHED = hashlib.sha256(b"bo-secret").hexdigest()
KEYS = f"""
[[key]]
key = "maya-secret"
user = "maya"

[[key]]
sha256 = "{HASHED.upper()}"
user = "bo"
roles = ["reader"]
clearance = ["health"]

[[key]]
key = "service-secret"
"""


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    return KeyRing.load(path)


def who(ring: KeyRing, key: str | None = None, header: str | None = None, body: str | None = None) -> Caller | None:
    return caller_of(ring.bearer(key), header_user=header, body_user=body)


def test_without_keys_the_claims_decide() -> None:
    ring = KeyRing.load(None)
    assert not ring.required
    assert who(ring) is None
    assert who(ring, "whatever") is None
    assert who(ring, header="maya", body="bo") == Caller("maya", bound=False)
    assert who(ring, body="bo") == Caller("bo", bound=False)


def test_a_user_bound_key_speaks_for_its_user_only(ring: KeyRing) -> None:
    bo = Caller("bo", bound=True, roles=("reader",), clearance=frozenset(("health",)))
    assert who(ring, "maya-secret") == Caller("maya", bound=True)
    assert who(ring, "bo-secret", header="bo", body="bo") == bo
    for claim in ({"header": "bo"}, {"body": "bo"}, {"header": "maya", "body": "bo"}):
        with pytest.raises(Forbidden):
            who(ring, "maya-secret", **claim)


def test_a_service_key_speaks_for_any_user(ring: KeyRing) -> None:
    assert who(ring, "service-secret") is None
    assert who(ring, "service-secret", header="cy") == Caller("cy", bound=False)


@pytest.mark.parametrize("key", [None, "", "wrong", "maya-secret ", HASHED, "\ud800", "mk_", "mk_a_b"])
def test_required_keys_are_required(ring: KeyRing, key: str | None) -> None:
    assert ring.required
    with pytest.raises(Unauthorized):
        who(ring, key, header="maya")


@pytest.mark.parametrize("claim", ["", "a" * 129, "a\nb", "group:staff", "operator:root", "memos-vllm"])
def test_malformed_claims(claim: str) -> None:
    with pytest.raises(BadInput):
        who(KeyRing(), header=claim)
    with pytest.raises(BadInput):
        checked_user(claim)


def test_what_roles_may() -> None:
    def may(*roles: str) -> list[str]:
        caller = Caller("maya", bound=True, roles=roles)  # type: ignore[arg-type]
        return [action for action in ("read", "write", "audit") if caller.may(action)]

    assert may() == ["read", "write"]
    assert may("reader") == ["read"]
    assert may("auditor") == ["read", "audit"]
    assert may("admin") == may("reader", "admin") == ["read", "write", "audit"]


def test_a_caller_answers_to_the_names_of_their_groups() -> None:
    assert Caller("maya", bound=True, groups=("staff", "board")).principals == ("maya", "group:staff", "group:board")


def test_a_ring_does_not_show_its_keys(ring: KeyRing) -> None:
    assert "secret" not in repr(ring) and HASHED not in repr(ring)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no"),
        ("[[key]]\nkey = 'a'\n[[key]\n", "line 3"),
        ("[[key]]\nuser = 'maya'", "number 1: give either key or sha256"),
        ("[[key]]\nkey = 'a'\nsha256 = 'b'", "number 1: give either key or sha256"),
        ("[[key]]\nkey = 'a'\n[[key]]\nsha256 = 'b'", "number 2: field sha256"),
        ("[[key]]\nkey = 'a'\n[[key]]\nkey = 'a'", "number 2 repeats a key"),
        ("[[key]]\nkey = ' '", "field key is empty"),
        ("[[key]]\nkey = 3", r"got `int` - at `\$.key`"),
        ("[[key]]\nkey = 'a'\nusr = 'maya'", "unknown field `usr`"),
        ("[[key]]\nkey = 'a'\nuser = ''", "field user"),
        ("[[key]]\nkey = 'a'\nuser = 'group:staff'", "field user"),
        ("[[key]]\nkey = 'a'\nroles = ['boss']", "'boss'"),
        ("[[key]]\nkey = 'a'\nclearance = 'health'", r"at `\$.clearance`"),
        ("[[keys]]\nkey = 'a'", "'keys'"),
        ("key = 'a'", "holds no"),
        ("key = ['a']", "number 1: Expected `object`"),
    ],
)
def test_a_bad_key_file_stops_the_start(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(StartError, match=named) as caught:
        KeyRing.load(path)
    assert "\n" not in str(caught.value)


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        KeyRing.load(tmp_path / "none.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(StartError, match="not TOML"):
        KeyRing.load(tmp_path / "keys.toml")
