import hashlib
from pathlib import Path

import pytest

from memos_vllm.errors import BadInput, Forbidden, StartError, Unauthorized
from memos_vllm.governance import Caller, KeyRing, resolve

HASHED = hashlib.sha256(b"bo-secret").hexdigest()
KEYS = f"""
[[key]]
key = "maya-secret"
user = "maya"

[[key]]
sha256 = "{HASHED.upper()}"
user = "bo"

[[key]]
key = "service-secret"
"""


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    return KeyRing.load(path)


def who(ring: KeyRing, bearer: str | None = None, header: str | None = None, body: str | None = None) -> Caller | None:
    return resolve(ring, bearer=bearer, header_user=header, body_user=body)


def test_without_keys_the_claims_decide() -> None:
    ring = KeyRing.load(None)
    assert not ring.required
    assert who(ring) is None
    assert who(ring, "whatever") is None
    assert who(ring, header="maya", body="bo") == Caller("maya", bound=False)
    assert who(ring, body="bo") == Caller("bo", bound=False)


def test_a_user_bound_key_speaks_for_its_user_only(ring: KeyRing) -> None:
    assert who(ring, "maya-secret") == Caller("maya", bound=True)
    assert who(ring, "bo-secret", header="bo", body="bo") == Caller("bo", bound=True)
    for claim in ({"header": "bo"}, {"body": "bo"}, {"header": "maya", "body": "bo"}):
        with pytest.raises(Forbidden):
            who(ring, "maya-secret", **claim)


def test_a_service_key_speaks_for_any_user(ring: KeyRing) -> None:
    assert who(ring, "service-secret") is None
    assert who(ring, "service-secret", header="cy") == Caller("cy", bound=False)


@pytest.mark.parametrize("bearer", [None, "", "wrong", "maya-secret ", HASHED, "\ud800"])
def test_required_keys_are_required(ring: KeyRing, bearer: str | None) -> None:
    assert ring.required
    with pytest.raises(Unauthorized):
        who(ring, bearer, header="maya")


@pytest.mark.parametrize("claim", ["", "a" * 129, "a\nb"])
def test_malformed_claims(claim: str) -> None:
    with pytest.raises(BadInput):
        who(KeyRing(), header=claim)


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
        ("[[key]]\nkey = 3", "must be a string"),
        ("[[key]]\nkey = 'a'\nusr = 'maya'", "'usr'"),
        ("[[key]]\nkey = 'a'\nuser = ''", "field user"),
        ("[[keys]]\nkey = 'a'", "'keys'"),
        ("key = 'a'", "holds no"),
        ("key = ['a']", "must be a string"),
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
