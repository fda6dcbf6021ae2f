import pytest

from memos_vllm.cube import Grant, MemCube
from memos_vllm.governance import may_read, may_share, may_write

CUBE = MemCube.plaintext("x", owner="maya", access=["reader", Grant("writer", ("write",)), Grant("sharer", ("share",))])


@pytest.mark.parametrize(
    ("principal", "read", "write", "share"),
    [
        ("maya", True, True, True),
        ("reader", True, False, False),
        ("writer", True, True, False),
        ("sharer", True, False, True),
        ("stranger", False, False, False),
        ("Maya", False, False, False),
        ("", False, False, False),
    ],
)
def test_rights(principal: str, read: bool, write: bool, share: bool) -> None:
    assert (may_read(CUBE, principal), may_write(CUBE, principal), may_share(CUBE, principal)) == (read, write, share)


def test_nobody_owns_a_cube_without_owner() -> None:
    cube = MemCube.from_json({"payload": {"type": "explicit", "content": "x"}})
    assert cube.owner == "" and not may_read(cube, "")
