"""Pipelines: every kind of step, names of earlier results, permits, and all or nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memos_vllm.cube import Grant, MemCube
from memos_vllm.errors import BadInput, Conflict, Forbidden, MemosError, NotFound
from memos_vllm.vault import LogQuery, Vault
from memos_vllm.vault.pipeline import (
    MAX_STEPS,
    AddStep,
    DeleteStep,
    EditStep,
    GrantStep,
    MergeStep,
    PurifyStep,
    Step,
    TransferStep,
    TransitionStep,
    UpdateStep,
)
from tests.unit.vault_cases import add, kv_for, texts


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == [] and vault.verify_log() == []


def test_purify_merge_and_transfer(vault: Vault) -> None:
    code, tea = add(vault, "the code is 4711\nnorth door", "North door\ntea", access=("cy",))
    purified, merged, given = vault.pipeline(
        [
            PurifyStep(code.id, "north door"),
            MergeStep((code.id, tea.id, code.id)),
            TransferStep("#1", "bo", namespace="expert"),
        ],
        actor="maya",
    )
    assert purified.id == code.id and merged.text == "north door\ntea" == given.text
    assert given.owner == "bo" and given.header.namespace == "expert" and given.readers() == ("bo",)
    assert (given.version, given.header.operation, given.header.parents) == (1, "transfer", (f"{merged.id}@1",))
    assert vault.list("bo") == [given] and [cube.header.state for cube in vault.list("maya")] == ["merged"] * 2
    with pytest.raises(NotFound):
        vault.get(merged.id)
    assert [item.operation for item in vault.provenance(given.id)] == ["transfer", "merge", "purify", "add", "add"]
    assert [entry.action for entry in vault.log(LogQuery(owner="bo"))] == ["transfer"]


def test_what_a_merge_takes_along(vault: Vault) -> None:
    sources = [
        MemCube.plaintext(
            "tea", owner="maya", tags=["a", "b"], access=[Grant("bo", ("read", "write")), "cy"], expires="2999-02-01"
        ),
        MemCube.plaintext(
            "milk", owner="maya", tags=["b", "c"], access=["bo"], metadata={"k": 1}, expires="2999-01-01"
        ),
    ]
    vault.add(sources, actor="maya")
    (merged,) = vault.pipeline([MergeStep(tuple(cube.id for cube in sources), "tea with milk")], actor="bo")
    header = merged.header
    assert merged.text == "tea with milk" and merged.id not in {cube.id for cube in sources}
    assert (header.owner, header.author, header.operation) == ("maya", "bo", "merge")
    assert header.parents == tuple(f"{cube.id}@1" for cube in sources)
    assert header.tags == ("a", "b", "c") and header.access == (Grant("bo"),) and header.expires == "2999-01-01"
    assert header.metadata == {"k": 1} and header.state == "generated"


def test_every_other_step(vault: Vault) -> None:
    first, second = add(vault, "a", "b")
    vault.put_kv(kv_for(vault, first, "k"))
    left = vault.pipeline(
        [
            AddStep(MemCube.plaintext("new", owner="maya")),
            UpdateStep(
                "#0", "more", operation="append", metadata={"x": 1}, tags=("t",), happened="2025-01-01", expect=1
            ),
            GrantStep("#0", "bo", ("write",)),
            GrantStep(second.id, "bo"),
            GrantStep(second.id, "bo", ()),
            TransitionStep(second.id, "frozen"),
            DeleteStep(first.id),
        ],
        actor="maya",
    )
    assert [cube.id for cube in left[:3]] == [left[0].id] * 3 and left[6] == first
    new = vault.get(left[0].id)
    assert (new.text, new.version, new.header.tags, new.header.happened) == ("new\nmore", 2, ("t",), "2025-01-01")
    assert new.header.access == (Grant("bo", ("read", "write")),) and vault.get(second.id).header.state == "frozen"
    assert texts(vault.readable("bo")) == ["new\nmore"]
    assert vault.iter_kv() == [] and not list((vault.path / "kv").iterdir())


def test_an_edit_adds_to_what_a_cube_has(vault: Vault) -> None:
    cube = MemCube.plaintext("a", owner="maya", tags=["x"], access=["bo"], expires="2999-01-01")
    vault.add([cube], actor="maya")
    more = EditStep(cube.id, ("y", "x"), ("health",), (Grant("bo", ("write",)), Grant("cy")))
    (new,) = vault.pipeline([more], actor="maya")
    assert (new.version, new.header.tags, new.header.sensitivity) == (1, ("x", "y"), ("health",))
    assert new.header.access == (Grant("bo", ("read", "write")), Grant("cy")) and new.header.expires == "2999-01-01"
    assert texts(vault.readable("cy")) == ["a"] and vault.check() == []


FAILING: list[tuple[type[MemosError], Any]] = [
    (NotFound, lambda cube: DeleteStep("0" * 32)),
    (NotFound, lambda cube: MergeStep((cube.id, "0" * 32))),
    (BadInput, lambda cube: MergeStep((cube.id, cube.id))),
    (BadInput, lambda cube: UpdateStep("#2", "x")),
    (BadInput, lambda cube: UpdateStep("#-1", "x")),
    (BadInput, lambda cube: UpdateStep("#", "x")),
    (BadInput, lambda cube: UpdateStep(cube.id, " ")),
    (BadInput, lambda cube: GrantStep(cube.id, "\n")),
    (BadInput, lambda cube: AddStep(MemCube.plaintext("x", owner=""))),
    (Conflict, lambda cube: AddStep(cube)),
    (Conflict, lambda cube: UpdateStep(cube.id, "x", expect=7)),
    (Conflict, lambda cube: TransferStep(cube.id, "maya")),
    (Conflict, lambda cube: MergeStep((cube.id, "#0"))),
    (Conflict, lambda cube: TransitionStep(cube.id, "generated")),
]


@pytest.mark.parametrize(("error", "step"), FAILING)
def test_a_step_that_fails_undoes_all(vault: Vault, error: type[MemosError], step: Any) -> None:
    (cube,) = add(vault, "a")
    vault.put_kv(kv_for(vault, cube, "k"))
    before = vault.list("maya"), vault.history(cube.id), vault.usage("maya"), vault.iter_kv(), vault.log_head()
    first = AddStep(MemCube.plaintext("other", owner="bo"))
    with pytest.raises(error):
        vault.pipeline([first, UpdateStep(cube.id, "changed"), step(cube)], actor="maya")
    after = vault.list("maya"), vault.history(cube.id), vault.usage("maya"), vault.iter_kv(), vault.log_head()
    assert after == before and vault.list("bo") == []


def test_sizes_of_pipelines(vault: Vault) -> None:
    step = AddStep(MemCube.plaintext("x", owner="maya"))
    for steps in ([], [step] * (MAX_STEPS + 1)):
        with pytest.raises(BadInput, match="1 to 1000"):
            vault.pipeline(steps, actor="maya")


def test_permits_are_asked_inside_the_transaction(vault: Vault) -> None:
    mine, yours = add(vault, "a")[0], add(vault, "b", owner="bo")[0]
    asked = []

    def permit(cube: MemCube, step: Step) -> None:
        asked.append((cube.text, type(step).__name__))
        if cube.owner != "maya":
            raise Forbidden("not yours")

    steps: list[Step] = [UpdateStep(mine.id, "a2"), GrantStep(mine.id, "bo"), DeleteStep(yours.id)]
    with pytest.raises(Forbidden):
        vault.pipeline(steps, actor="maya", permit=permit)
    assert asked == [("a", "UpdateStep"), ("a2", "GrantStep"), ("b", "DeleteStep")]
    assert vault.get(mine.id) == mine and vault.get(yours.id) == yours


def test_steps_have_a_json_form() -> None:
    steps: list[Step] = [UpdateStep("#0", "x"), MergeStep(("a", "b")), GrantStep("a", "bo", ()), DeleteStep("a")]
    data = msgspec.json.encode(steps)
    assert msgspec.json.decode(data)[0]["do"] == "update" and msgspec.json.decode(data, type=list[Step]) == steps
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'[{"do": "delete", "id": "a", "force": true}]', type=list[Step])
