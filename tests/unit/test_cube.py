import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.cube import (
    MAX_GRANTS,
    MAX_TEXT_BYTES,
    Activation,
    Grant,
    Header,
    MemCube,
    Parameter,
    checked_principal,
    completed,
    new_id,
    now,
    timestamp,
)
from memos_vllm.errors import BadInput, NotPlaintext, TooLarge

OUTSIDE: dict[str, Any] = {
    "meta": {
        "created": "2025-04-10",
        "source": "session_3894",
        "model": "LLaMA3-8B",
        "priority": "mid",
        "expires": "2025-06-01",
        "access": ["user_483", "admin"],
    },
    "payload": {"type": "explicit", "format": "text", "content": "Use the blue door."},
}


def through_json(cube: MemCube) -> MemCube:
    return MemCube.from_json(json.loads(json.dumps(cube.to_json(), allow_nan=False)))


def test_the_outside_form_is_read_and_round_trips() -> None:
    cube = MemCube.from_json(OUTSIDE, owner="maya")
    assert cube.text == "Use the blue door."
    assert cube.readers() == ("maya", "user_483", "admin")
    assert cube.header.created == "2025-04-10"
    written = cube.to_json()
    assert OUTSIDE["meta"].items() <= written["meta"].items()
    assert written["payload"] == {"type": "plaintext", "format": "text", "content": "Use the blue door."}
    assert through_json(cube) == cube


@given(
    text=st.text(min_size=1).filter(str.strip),
    tags=st.lists(st.text()),
    metadata=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
    ),
)
def test_every_cube_that_is_made_round_trips(text: str, tags: list[str], metadata: dict[str, object]) -> None:
    try:
        cube = MemCube.plaintext(text, owner="maya", tags=tags, metadata=metadata)  # type: ignore[arg-type]
    except BadInput:
        infinite = any(value in (float("inf"), float("-inf")) for value in metadata.values())
        assert infinite or any("\ud800" <= char <= "\udfff" for char in repr((text, tags, metadata)))
        return
    assert through_json(cube) == cube


def test_every_payload_kind_round_trips() -> None:
    kv = MemCube(Header(owner="maya", model="m"), Activation(key="k", identity="i", layers=2, tokens=17, origin=5))
    lora = MemCube(
        Header(owner="maya"), Parameter(digest="d", base_model="m", rank=8, scale=2.0, target_modules=("q_proj",))
    )
    for cube in (completed(kv), completed(lora)):
        assert through_json(cube) == cube
        with pytest.raises(NotPlaintext):
            _ = cube.text
    assert issubclass(NotPlaintext, BadInput) and issubclass(NotPlaintext, TypeError)


def test_many_share_through_a_group() -> None:
    access = [f"user-{number}" for number in range(MAX_GRANTS)]
    assert len(MemCube.plaintext("x", owner="maya", access=[*access, "maya"]).header.access) == MAX_GRANTS
    with pytest.raises(TooLarge, match="group"):
        MemCube.plaintext("x", owner="maya", access=[*access, "one more"])


def test_structured_content_is_json_outside_and_text_inside() -> None:
    data = {"payload": {"type": "plaintext", "format": "json", "content": {"b": [1, None], "a": "ü"}}}
    cube = MemCube.from_json(data, owner="maya")
    assert cube.text == '{"a": "ü", "b": [1, null]}'
    assert cube.to_json()["payload"]["content"] == {"b": [1, None], "a": "ü"}


def test_grants_are_one_per_principal_and_never_the_owner() -> None:
    access: list[Grant | str] = ["bo", Grant("bo", ("write",)), Grant("maya", ("share",)), Grant("cy", ("share",))]
    cube = MemCube.plaintext("x", owner="maya", access=access)
    assert cube.header.access == (Grant("bo", ("read", "write")), Grant("cy", ("read", "share")))
    assert cube.to_json()["meta"]["access"][0] == {"principal": "bo", "rights": ["read", "write"]}


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "meta"),
        ({"meta": []}, "meta"),
        ({"meta": {}}, "payload"),
        ({"payload": {"type": "tape", "content": "x"}}, "type"),
        ({"payload": {"type": "plaintext"}}, "content"),
        ({"payload": {"type": "plaintext", "content": 3}}, "content"),
        ({"payload": {"type": "plaintext", "content": " \n"}}, "empty"),
        ({"payload": {"type": "plaintext", "content": "\ud800"}}, "Unicode"),
        ({"payload": {"type": "plaintext", "format": "json", "content": {"a": float("nan")}}}, "NaN"),
        ({"meta": {"colour": "red"}}, "colour"),
        ({"meta": {"created": "yesterday"}}, "created"),
        ({"meta": {"expires": "2025-13-01T00:00:00Z"}}, "expires"),
        ({"meta": {"priority": "urgent"}}, "priority"),
        ({"meta": {"access": "bo"}}, "access"),
        ({"meta": {"access": [""]}}, "user id"),
        ({"meta": {"access": [{"principal": "bo", "rights": ["own"]}]}}, "rights"),
        ({"meta": {"id": "../../etc"}}, "id"),
        ({"meta": {"version": 0}}, "version"),
        ({"meta": {"metadata": {"a": [1]}}}, "metadata"),
        ({"meta": {"metadata": {"a": float("inf")}}}, "finite"),
        ({"meta": {"metadata": {"a": 2**70}}}, "stored"),
        ({"meta": {"half_life_days": 0}}, "half_life_days"),
        ({"meta": {"half_life_days": 5e-324}}, "half_life_days"),
        ({"meta": {"tags": ["\udfff"]}}, "stored"),
    ],
)
def test_malformed_cubes_are_refused_by_field(data: object, named: str) -> None:
    if isinstance(data, dict) and "payload" not in data and data.get("meta"):
        data = {**data, "payload": {"type": "plaintext", "content": "x"}}
    with pytest.raises(BadInput, match=named):
        MemCube.from_json(data, owner="maya")


def test_sizes_are_bounded_in_bytes() -> None:
    assert MemCube.plaintext("é" * (MAX_TEXT_BYTES // 2), owner="maya").version == 1
    with pytest.raises(TooLarge):
        MemCube.plaintext("é" * (MAX_TEXT_BYTES // 2) + "a", owner="maya")
    with pytest.raises(TooLarge):
        MemCube.plaintext("x", owner="maya", metadata={"a": "b" * (1 << 16)})


def test_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert all(len(i) == 32 and i[12] == "7" and i[16] in "89ab" for i in ids)
    assert abs(int(ids[0][:12], 16) / 1000 - time.time()) < 60
    time.sleep(0.002)
    assert new_id() > ids[0]


def test_times_have_one_form_which_sorts() -> None:
    assert timestamp("2025-04-10", "created") == "2025-04-10"
    assert timestamp("2025-04-10T14:00:00+02:00", "created") == "2025-04-10T12:00:00.000000Z"
    assert timestamp("2025-04-10T12:00:00", "created") == "2025-04-10T12:00:00.000000Z"
    assert timestamp(now(), "created") <= now()
    assert timestamp("0068-01-01T00:00:00", "created") == "0068-01-01T00:00:00.000000Z"


def test_expiry() -> None:
    cube = MemCube.plaintext("x", owner="maya", expires="2025-06-01")
    assert not cube.expired("2025-05-31T23:59:59.999999Z")
    assert cube.expired("2025-06-01T00:00:00.000000Z")
    assert cube.expired()
    assert not MemCube.plaintext("x", owner="maya").expired()


@pytest.mark.parametrize("name", ["", "a" * 129, "a\nb", "a\x00b", " a", "a ", "\ud800", "a\u202eb"])
def test_user_ids_that_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        checked_principal(name)


@pytest.mark.parametrize("name", ["a", "a" * 128, "мая", "maya@example.com", "a/../b", "José Ángel", "🦊"])
def test_user_ids_that_are_accepted(name: str) -> None:
    assert checked_principal(name) == name


def test_stored_headers_leave_out_defaults_and_the_outside_form_does_not() -> None:
    cube = MemCube.plaintext("tea", owner="maya")
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(cube))
    assert "namespace" not in stored["header"] and "happened" not in stored["header"]
    meta = cube.to_json()["meta"]
    assert meta.keys() == set(Header.__struct_fields__) and meta["namespace"] == "user"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(cube), type=MemCube) == cube


def test_when_it_happened_is_a_date_or_a_time() -> None:
    def happened(value: str) -> str:
        data = {"meta": {"happened": value}, "payload": {"type": "plaintext", "content": "x"}}
        return MemCube.from_json(data, owner="maya").header.happened

    assert happened("2025-05-01") == "2025-05-01"
    assert happened("2025-05-01T12:00:00+02:00") == "2025-05-01T10:00:00.000000Z"
    with pytest.raises(BadInput, match=r"meta\.happened"):
        happened("last week")
