"""Permission = identity × object × context, against a table and against a model."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_vllm.cube import Grant, MemCube, Namespace, Right, State
from memos_vllm.governance import Context, may_read, may_share, may_write
from memos_vllm.governance.acl import Purpose, may

CUBE = MemCube.plaintext(
    "x",
    owner="maya",
    access=["reader", Grant("writer", ("write",)), Grant("sharer", ("share",)), Grant("group:staff", ("write",))],
)


def changed(**fields: object) -> MemCube:
    return MemCube(msgspec.structs.replace(CUBE.header, **fields), CUBE.payload)


@pytest.mark.parametrize(
    ("principals", "read", "write", "share"),
    [
        ("maya", True, True, True),
        ("reader", True, False, False),
        ("writer", True, True, False),
        ("sharer", True, False, True),
        ("stranger", False, False, False),
        ("Maya", False, False, False),
        ("", False, False, False),
        (("bo", "group:staff"), True, True, False),
        (("bo", "group:board"), False, False, False),
        (("reader", "sharer"), True, False, True),
        ((), False, False, False),
    ],
)
def test_rights(principals: str | tuple[str, ...], read: bool, write: bool, share: bool) -> None:
    assert (may_read(CUBE, principals), may_write(CUBE, principals), may_share(CUBE, principals)) == (
        read,
        write,
        share,
    )


def test_nobody_owns_a_cube_without_owner() -> None:
    cube = MemCube.from_json({"payload": {"type": "explicit", "content": "x"}})
    assert cube.owner == "" and not may_read(cube, "") and not may_read(cube, ("", "group:"))


def test_a_clearance_must_cover_every_tag() -> None:
    cube = changed(sensitivity=("health", "family"))
    for clearance in (frozenset(), frozenset(("health",)), frozenset(("work",))):
        assert not may_read(cube, "maya", Context(clearance=clearance))
        assert not may_write(cube, "maya", Context(clearance=clearance))
    assert may_read(cube, "maya", Context(clearance=frozenset(("health", "family", "work"))))
    assert may_read(cube, "maya", Context(clearance=None))
    assert may_read(CUBE, "maya", Context(clearance=frozenset()))


@pytest.mark.parametrize("cube", [changed(expires="2020-01-01"), changed(state="expired")])
def test_an_expired_cube_is_for_its_owner_to_look_at(cube: MemCube) -> None:
    assert may_read(cube, "maya") and not may_read(cube, "reader")
    assert not may_read(cube, "maya", Context("prompt")) and not may_read(cube, "maya", Context("export"))


@pytest.mark.parametrize("state", ["merged", "archived", "frozen"])
def test_cold_cubes_enter_no_prompt(state: State) -> None:
    assert may_read(changed(state=state), "reader")
    assert not may_read(changed(state=state), "maya", Context("prompt"))


def test_caches_of_pipelines_are_not_exported() -> None:
    assert may_read(changed(namespace="pipeline"), "maya", Context("prompt"))
    assert not may_read(changed(namespace="pipeline"), "maya", Context("export"))


NAMES = st.sampled_from(["maya", "bo", "cy", "group:staff", "group:board"])
TAGS = st.sampled_from(["health", "work", "family"])


@settings(deadline=None)
@given(
    owner=st.sampled_from(["maya", "bo"]),
    grants=st.dictionaries(NAMES, st.sets(st.sampled_from(get_args(Right)), min_size=1), max_size=3),
    sensitivity=st.frozensets(TAGS),
    state=st.sampled_from(get_args(State)),
    namespace=st.sampled_from(get_args(Namespace)),
    gone=st.booleans(),
    principals=st.sets(NAMES, max_size=3),
    right=st.sampled_from(get_args(Right)),
    purpose=st.sampled_from(get_args(Purpose)),
    clearance=st.none() | st.frozensets(TAGS),
)
def test_against_a_model(
    owner: str,
    grants: dict[str, set[Right]],
    sensitivity: frozenset[str],
    state: State,
    namespace: Namespace,
    gone: bool,
    principals: set[str],
    right: Right,
    purpose: Purpose,
    clearance: frozenset[str] | None,
) -> None:
    access = [Grant(name, tuple(sorted(rights))) for name, rights in grants.items()]
    cube = MemCube.plaintext("x", owner=owner, access=access, expires="2020-01-01" if gone else "")
    header = msgspec.structs.replace(cube.header, sensitivity=tuple(sensitivity), state=state, namespace=namespace)
    mine = owner in principals
    held: set[str] = {"read", "write", "share"} if mine else set()
    for name in principals & grants.keys():
        held |= grants[name] | {"read"}
    cleared = clearance is None or sensitivity <= clearance
    fresh = not gone and state != "expired"
    fits = {
        "api": fresh or mine,
        "prompt": fresh and state in ("generated", "activated"),
        "export": fresh and namespace != "pipeline",
    }
    wanted = right in held and cleared and fits[purpose]
    assert may(MemCube(header, cube.payload), principals, right, Context(purpose, clearance)) == wanted
