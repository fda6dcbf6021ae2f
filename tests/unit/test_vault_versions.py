"""Rollback, header edits, purification, what a caller has seen, and where a cube comes from."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from memos_vllm.cube import Grant, MemCube
from memos_vllm.errors import BadInput, Conflict, NotFound, TooLarge
from memos_vllm.vault import Usage, Vault
from memos_vllm.vault.pipeline import MergeStep, TransferStep
from tests.unit.vault_cases import add, kv_for, texts


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault
        assert vault.check() == []


def test_what_a_rollback_brings_back_is_as_delicate_as_it_was(vault: Vault) -> None:
    (cube,) = add(vault, "I take lithium")
    vault.edit(cube.id, actor="maya", sensitivity=["health"])
    vault.update(cube.id, "I take the tram", actor="maya")
    vault.edit(cube.id, actor="maya", sensitivity=["work"])
    assert vault.rollback(cube.id, 1, actor="maya").header.sensitivity == ("work", "health")


def test_a_rollback_is_a_new_version_with_the_old_content(vault: Vault) -> None:
    cube = MemCube.plaintext("I drink tea", owner="maya", tags=["taste"], metadata={"a": 1})
    vault.add([cube], actor="maya")
    vault.update(cube.id, "I drink milk", actor="bo", metadata={"a": 2}, tags=["news"], happened="2025-05-01")
    vault.edit(cube.id, actor="maya", priority="high", access=["cy"])
    back = vault.rollback(cube.id, 1, actor="maya")
    assert (back.text, back.version, back.header.operation, back.header.author) == (
        "I drink tea",
        3,
        "rollback",
        "maya",
    )
    assert back.header.tags == ("taste",) and back.header.metadata == {"a": 1} and back.header.happened == ""
    assert back.header.priority == "high" and back.readers() == ("maya", "cy")
    assert back.header.parents == (f"{cube.id}@1",)
    assert texts(vault.versions(cube.id)) == ["I drink tea", "I drink milk", "I drink tea"]
    assert vault.readable("cy") == [back]
    assert [(event.how, event.actor, event.parents) for event in vault.history(cube.id)] == [
        ("add", "maya", ()),
        ("overwrite", "bo", (f"{cube.id}@1",)),
        ("rollback", "maya", (f"{cube.id}@1",)),
    ]


def test_rollbacks_that_are_refused(vault: Vault) -> None:
    (cube,) = add(vault, "a")
    with pytest.raises(Conflict, match="at version 1 already"):
        vault.rollback(cube.id, 1, actor="maya")
    for version in (0, 2, -1):
        with pytest.raises(NotFound):
            vault.rollback(cube.id, version, actor="maya")
    with pytest.raises(NotFound):
        vault.rollback("0" * 32, 1, actor="maya")


def test_a_rollback_takes_kv_of_another_text_away(vault: Vault) -> None:
    (cube,) = add(vault, "a")
    new = vault.update(cube.id, "b", actor="maya")
    vault.put_kv(kv_for(vault, new, "k"))
    vault.rollback(cube.id, 1, actor="maya")
    assert vault.iter_kv() == [] and not list((vault.path / "kv").iterdir())


def test_an_edit_makes_no_version(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    edited = vault.edit(
        cube.id,
        actor="maya",
        access=["bo", Grant("cy", ("read", "write"))],
        tags=["x"],
        priority="low",
        namespace="expert",
        expires="2999-01-01",
        half_life_days=3,
        sensitivity=["health"],
        watermark="w",
        metadata={"k": 1},
    )
    header = edited.header
    assert (edited.version, edited.text, vault.versions(cube.id)) == (1, "tea", [edited])
    assert (header.tags, header.priority, header.namespace, header.expires) == (("x",), "low", "expert", "2999-01-01")
    assert (header.half_life_days, header.sensitivity, header.watermark) == (3, ("health",), "w")
    assert header.metadata == {"k": 1} and header.access == (Grant("bo"), Grant("cy", ("read", "write")))
    assert vault.readable("bo") == vault.readable("cy") == [edited]
    cleared = vault.edit(cube.id, actor="maya", access=["cy"], expires="", half_life_days=0, metadata={"m": 2})
    assert (cleared.header.expires, cleared.header.half_life_days) == ("", None)
    assert cleared.header.metadata == {"k": 1, "m": 2} and cleared.header.tags == ("x",)
    assert vault.readable("bo") == [] and vault.readable("cy") == [cleared]
    assert vault.edit(cube.id, actor="maya") == cleared


def test_edits_that_are_refused(vault: Vault) -> None:
    (cube,) = add(vault, "tea")
    for error, fields in (
        (BadInput, {"access": ["\n"]}),
        (BadInput, {"expires": "soon"}),
        (BadInput, {"half_life_days": -1}),
        (TooLarge, {"tags": ["x" * (1 << 16)]}),
        (Conflict, {"expect": 2}),
    ):
        with pytest.raises(error):
            vault.edit(cube.id, actor="maya", **fields)
    assert vault.get(cube.id) == cube


def test_a_change_of_another_version_than_was_seen_is_refused(vault: Vault) -> None:
    (cube,) = add(vault, "a")
    vault.update(cube.id, "b", actor="maya", expect=1)
    with pytest.raises(Conflict, match="version 2, not 1"):
        vault.update(cube.id, "c", actor="bo", expect=1)
    assert vault.get(cube.id).text == "b"


def test_a_version_may_have_another_expiry(vault: Vault) -> None:
    (cube,) = add(vault, "I drink tea")
    new = vault.update(cube.id, "I drink milk", actor="maya", expires="2025-01-01", expect=1)
    assert (new.text, new.header.expires, new.version) == ("I drink milk", "2025-01-01", 2)
    assert texts(vault.due("2026-01-01", limit=9)) == ["I drink milk"]
    assert vault.update(cube.id, "I drink rain", actor="maya", tags=["x"]).header.expires == "2025-01-01"
    assert vault.update(cube.id, "I drink snow", actor="maya", expires="").header.expires == ""
    with pytest.raises(BadInput, match="expires"):
        vault.update(cube.id, "I drink hail", actor="maya", expires="soon")
    assert vault.due("2026-01-01", limit=9) == [] and vault.get(cube.id).version == 4


def test_purifying_removes_the_versions_before(vault: Vault) -> None:
    (cube,) = add(vault, "the code is 4711")
    vault.update(cube.id, "the code is 4712", actor="maya")
    clean = vault.update(cube.id, "the code is secret", actor="maya", operation="purify")
    assert vault.versions(cube.id) == [clean] and clean.version == 3
    assert [event.new_text for event in vault.history(cube.id)] == [None, None, "the code is secret"]
    with pytest.raises(NotFound, match="versions 3 to 3"):
        vault.get(cube.id, version=1)
    after = vault.update(cube.id, "moved", actor="maya")
    assert vault.versions(cube.id) == [clean, after]


def test_usage_is_what_is_stored(vault: Vault) -> None:
    assert vault.usage("maya") == Usage()
    first, _ = add(vault, "a" * 1000, "b" * 1000)
    held = vault.usage("maya")
    assert held.cubes == 2 and 2000 < held.bytes < 4000
    vault.update(first.id, "c" * 1000, actor="maya")
    assert vault.usage("maya").cubes == 2 and vault.usage("maya").bytes > held.bytes + 1000
    vault.delete(first.id, actor="maya")
    assert vault.usage("maya").cubes == 1
    vault.delete_owner("maya", actor="maya")
    assert vault.usage("maya") == Usage()


def test_a_quota_undoes_the_transaction(vault: Vault) -> None:
    asked = []

    def guard(owner: str, before: Usage, after: Usage) -> None:
        asked.append((owner, before.cubes, after.cubes))
        if after.cubes > 2:
            raise TooLarge("no more")

    vault.quota_guard = guard
    first, second = add(vault, "a", "b")
    with pytest.raises(TooLarge):
        add(vault, "c")
    with pytest.raises(TooLarge):
        vault.pipeline([TransferStep(add(vault, owner, owner=owner)[0].id, "maya") for owner in ("bo",)], actor="x")
    assert asked == [("maya", 0, 2), ("maya", 2, 3), ("bo", 0, 1), ("maya", 2, 3)]
    asked.clear()
    vault.delete(first.id, actor="maya")
    vault.transition(second.id, "frozen", actor="maya")
    assert not [cubes for _, *cubes in asked if cubes != [1, 1]]
    assert texts(vault.list("maya")) == ["b"] and texts(vault.list("bo")) == ["bo"]


def test_provenance_goes_back_through_versions_and_merges(vault: Vault) -> None:
    tea, milk = add(vault, "tea", "milk")
    vault.update(tea.id, "green tea", actor="bo")
    (merged,) = vault.pipeline([MergeStep((tea.id, milk.id))], actor="maya")
    new = vault.update(merged.id, "both", actor="maya")
    found = [(item.id, item.version, item.operation, item.author, item.depth) for item in vault.provenance(new.id)]
    assert found == [
        (new.id, 2, "overwrite", "maya", 0),
        (new.id, 1, "merge", "maya", 1),
        (tea.id, 2, "overwrite", "bo", 2),
        (milk.id, 1, "add", "maya", 2),
        (tea.id, 1, "add", "maya", 3),
    ]
    assert len(vault.provenance(new.id, limit=2)) == 2
    with pytest.raises(NotFound):
        vault.provenance("0" * 32)


def test_provenance_of_what_is_gone_or_elsewhere(vault: Vault) -> None:
    (tea,) = add(vault, "tea")
    vault.update(tea.id, "green tea", actor="maya")
    header = msgspec.structs.replace(tea.header, id="", parents=(f"{tea.id}@2", "a page on the web", f"{tea.id}@9"))
    (derived,) = vault.add([MemCube(header, tea.payload)], actor="bo")
    vault.delete(tea.id, actor="maya")
    found = [(item.id, item.version, item.operation, item.owner) for item in vault.provenance(derived.id)]
    assert found == [
        (derived.id, 1, "add", "maya"),
        (tea.id, 2, "overwrite", ""),
        ("a page on the web", 0, None, ""),
        (tea.id, 9, None, ""),
        (tea.id, 1, "add", ""),
    ]


def test_namespaces_part_an_owners_cubes(vault: Vault) -> None:
    (mine,) = add(vault, "mine")
    cube = MemCube.from_json(
        {"meta": {"namespace": "expert"}, "payload": {"type": "plaintext", "content": "known"}}, owner="maya"
    )
    vault.add([cube], actor="maya")
    assert texts(vault.list("maya", namespace="expert")) == ["known"]
    assert vault.list("maya", namespace="user") == [mine] and vault.list("maya", namespace="pool") == []
    assert len(vault.list("maya")) == 2
