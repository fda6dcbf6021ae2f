"""AdapterRegistry: versions, activation, defaults, and who may see and use what."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from time import perf_counter

import pytest

from memos_vllm.cube import Grant, Licence
from memos_vllm.errors import AdapterInactive, AdapterUnusable, BadInput, Conflict, Forbidden, NotFound, StartError
from memos_vllm.governance.identity import Caller
from memos_vllm.parameter.registry import AdapterRegistry
from memos_vllm.vault import Vault
from tests.unit.adapter_cases import BO, MAYA, add, base, files, registry_of, share_slower

READ = (Grant("bo"),)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    with Vault.open(tmp_path / "memory") as vault:
        yield registry_of(vault)


def test_a_first_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, tags=("poems",), metadata={"accuracy": 0.95}, parents=("0" * 32 + "@1",))
    assert (stored.served, stored.owner, stored.version, stored.rank, stored.scale) == ("poet@v1", "maya", 1, 4, 2.0)
    assert stored.base == base().fingerprint and stored.target_modules == ("q_proj", "v_proj")
    assert stored.engine_name == f"{stored.cube_id}@v1"
    assert (stored.name_for("maya"), stored.name_for("bo")) == ("poet@v1", "maya/poet@v1")
    cube = registry.vault.get(stored.cube_id)
    assert cube.header.origin == "parameter_fine_tuning" and cube.header.author == "maya"
    assert cube.header.parents == ("0" * 32 + "@1",) and stored.metadata == {"accuracy": 0.95}
    entry = registry.get(MAYA, "poet")
    assert entry.active is None and not entry.default and entry.versions == (stored,)
    with pytest.raises(AdapterInactive, match="No version of the adapter 'poet' is active"):
        registry.resolve(MAYA, "poet")
    assert registry.resolve(MAYA, "poet@v1") == stored
    assert registry.default_of(MAYA) is None


def test_the_next_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    one = add(registry, tmp_path, activate=True, access=READ)
    two = add(registry, tmp_path, seed=1, tags=("more",))
    assert (two.cube_id, two.version) == (one.cube_id, 2) and two.int_id != one.int_id and two.digest != one.digest
    assert two.parents == (f"{one.cube_id}@1",)
    assert registry.resolve(MAYA, "poet") == one, "a version serves nobody before it is activated"
    assert registry.resolve(BO, "maya/poet@v2") == two, "who may use an adapter may use its versions"
    assert [version.tags for version in registry.get(MAYA, "poet").versions] == [(), ("more",)]
    with pytest.raises(NotFound):
        registry.resolve(MAYA, "poet@v3")


def test_activation_and_the_way_back(registry: AdapterRegistry, tmp_path: Path) -> None:
    for seed in range(3):
        add(registry, tmp_path, seed=seed)
    assert registry.activate(MAYA, "poet", 1).version == 1
    assert registry.activate(MAYA, "poet").version == 3, "the newest, where none is named"
    assert registry.activate(MAYA, "poet", 2).served == "poet@v2" == registry.resolve(MAYA, "poet").served
    assert registry.rollback(MAYA, "poet").version == 3
    assert registry.rollback(MAYA, "poet").version == 1
    with pytest.raises(Conflict, match="No other version of 'poet' was active before"):
        registry.rollback(MAYA, "poet")
    registry.deactivate(MAYA, "poet")
    with pytest.raises(AdapterInactive):
        registry.resolve(MAYA, "poet")
    assert registry.resolve(MAYA, "poet@v3").version == 3
    assert registry.rollback(MAYA, "poet").version == 1, "what was active before it was switched off"
    with pytest.raises(NotFound, match="no version 4"):
        registry.activate(MAYA, "poet", 4)
    actions = [entry.action for entry in registry.vault.log() if entry.action.startswith("adapter.")]
    assert actions.count("adapter.activate") == 3 and actions.count("adapter.rollback") == 3


def test_activating_the_active_version_changes_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True)
    registry.activate(MAYA, "poet", 1)
    with pytest.raises(Conflict):
        registry.rollback(MAYA, "poet")


def test_the_default(registry: AdapterRegistry, tmp_path: Path) -> None:
    poet = add(registry, tmp_path, activate=True)
    assert registry.default_of(MAYA) == poet, "the first one that is activated"
    cook = add(registry, tmp_path, "cook", seed=1, activate=True)
    assert registry.default_of(MAYA) == poet
    registry.activate(MAYA, "cook", default=True)
    assert registry.default_of(MAYA) == cook and not registry.get(MAYA, "poet").default
    registry.deactivate(MAYA, "cook")
    assert registry.default_of(MAYA) is None
    registry.activate(MAYA, "cook", default=False)
    assert registry.default_of(MAYA) is None and registry.resolve(MAYA, "cook") == cook
    registry.activate(MAYA, "poet", default=True)
    registry.remove(MAYA, "poet")
    assert registry.default_of(MAYA) is None


def test_names_belong_to_their_owner(registry: AdapterRegistry, tmp_path: Path) -> None:
    mine = add(registry, tmp_path, activate=True)
    theirs = add(registry, tmp_path, owner="bo", seed=1, activate=True)
    assert registry.resolve(MAYA, "poet") == mine and registry.resolve(BO, "poet") == theirs
    assert [entry.owner for entry in registry.list(MAYA)] == ["maya"]
    assert registry.resolve(MAYA, "maya/poet") == mine


ATTEMPTS: list[Callable[[AdapterRegistry, Caller, str, Path], object]] = [
    lambda registry, caller, name, _: registry.get(caller, name),
    lambda registry, caller, name, _: registry.resolve(caller, name),
    lambda registry, caller, name, _: registry.resolve(caller, f"{name}@v1"),
    lambda registry, caller, name, _: registry.activate(caller, name),
    lambda registry, caller, name, _: registry.rollback(caller, name),
    lambda registry, caller, name, _: registry.deactivate(caller, name),
    lambda registry, caller, name, _: registry.remove(caller, name),
    lambda registry, caller, name, _: registry.remove(caller, name, 1),
    lambda registry, caller, name, folder: registry.export(caller, name, folder / "out"),
]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_a_caller_may_not_see_does_not_exist(
    registry: AdapterRegistry, tmp_path: Path, attempt: Callable[[AdapterRegistry, Caller, str, Path], object]
) -> None:
    add(registry, tmp_path, activate=True)
    said = set()
    for name in ("maya/poet", "maya/nothing", "nobody/poet", "poet"):
        with pytest.raises(NotFound) as caught:
            attempt(registry, BO, name, tmp_path)
        said.add(str(caught.value))
    assert len(said) == 1, "the words must not tell an adapter of another user from none"
    assert registry.list(BO) == [] and registry.resolve(MAYA, "poet").version == 1
    assert not (tmp_path / "out").exists()


def test_the_time_it_takes_tells_nothing_of_anothers_adapter(registry: AdapterRegistry, tmp_path: Path) -> None:
    """What is another's takes as long as what is nobody's; one's own, which is read, takes longer."""
    add(registry, tmp_path, activate=True)

    def seconds(caller: Caller, name: str) -> float:
        began = perf_counter()
        with suppress(NotFound):
            registry.resolve(caller, name)
        return perf_counter() - began

    probes = ((BO, "maya/poet"), (BO, "maya/none"), (MAYA, "poet"), (MAYA, "none"))
    times: dict[tuple[Caller, str], list[float]] = {probe: [] for probe in probes}
    rng = Random(0)
    for _ in range(3000):
        for probe in rng.sample(probes, len(probes)):  # what is asked before leaves its traces in the caches
            times[probe].append(seconds(*probe))
    anothers, nobodys, own, absent = (times[probe] for probe in probes)
    assert 0.4 < share_slower(anothers, nobodys) < 0.6
    assert share_slower(own, absent) > 0.9


def test_sharing(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True, access=READ, parents=("0" * 32 + "@1",))
    assert registry.resolve(BO, "maya/poet") == stored
    shared, mine = registry.list(BO)[0], registry.list(MAYA)[0]
    assert shared == registry.get(BO, "maya/poet") and mine.access == READ and mine.versions == (stored,)
    assert (shared.access, shared.versions[0].parents) == ((), ()), "who else may use it, and what it was made from"
    for attempt in ATTEMPTS[3:8]:
        with pytest.raises(Forbidden, match="not yours"):
            attempt(registry, BO, "maya/poet", tmp_path)
    assert registry.export(BO, "maya/poet", tmp_path / "out") == stored
    registry.vault.edit(stored.cube_id, actor="maya", access=())
    with pytest.raises(NotFound):
        registry.resolve(BO, "maya/poet")
    registry.vault.edit(stored.cube_id, actor="maya", access=["group:cooks"])
    cook = dataclasses.replace(BO, groups=("cooks",))
    assert registry.resolve(cook, "maya/poet") == stored and registry.default_of(cook) is None
    assert registry.vault.check() == []


def test_own_adapters_come_first(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, "b", owner="anna", access=(Grant("maya"),))
    add(registry, tmp_path, "z")
    add(registry, tmp_path, "c")
    assert [(entry.owner, entry.name) for entry in registry.list(MAYA)] == [("maya", "c"), ("maya", "z"), ("anna", "b")]


def test_a_key_without_clearance(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    registry.vault.edit(stored.cube_id, actor="maya", sensitivity=["health"])
    limited = dataclasses.replace(MAYA, clearance=frozenset())
    with pytest.raises(NotFound):
        registry.resolve(limited, "poet")
    assert registry.default_of(limited) is None and registry.list(limited) == []
    assert registry.default_of(MAYA) == stored


def test_an_archived_adapter_is_woken_by_activation(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True)
    registry.vault.transition(stored.cube_id, "archived", actor="memos-vllm")
    with pytest.raises(AdapterInactive, match="is archived; activate it"):
        registry.resolve(MAYA, "poet")
    with pytest.raises(AdapterInactive):
        registry.default_of(MAYA)
    registry.activate(MAYA, "poet")
    assert registry.resolve(MAYA, "poet") == stored


def test_what_has_expired(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path, activate=True, access=READ)
    registry.vault.edit(stored.cube_id, actor="maya", expires="2020-01-01")
    with pytest.raises(AdapterInactive, match="expired"):
        registry.resolve(MAYA, "poet")
    with pytest.raises(NotFound):
        registry.resolve(BO, "maya/poet")
    licensed = add(registry, tmp_path, "cook", activate=True, licence=Licence(expires="2020-01-01"))
    with pytest.raises(AdapterInactive, match="licence"):
        registry.resolve(MAYA, "cook")
    assert registry.get(MAYA, "cook").licence == Licence(expires="2020-01-01") and licensed.version == 1


def test_removing_a_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    for seed in range(3):
        add(registry, tmp_path, seed=seed)
    registry.activate(MAYA, "poet", 2)
    registry.activate(MAYA, "poet", 3)
    with pytest.raises(Conflict, match="poet@v3 is active"):
        registry.remove(MAYA, "poet", 3)
    two = registry.resolve(MAYA, "poet@v2")
    registry.remove(MAYA, "poet", 2)
    assert not registry.folder(two).exists() and not registry.exists(two)
    with pytest.raises(NotFound):
        registry.resolve(MAYA, "poet@v2")
    with pytest.raises(NotFound):
        registry.remove(MAYA, "poet", 2)
    with pytest.raises(Conflict, match="was active before"):
        registry.rollback(MAYA, "poet")
    registry.deactivate(MAYA, "poet")
    registry.remove(MAYA, "poet", 3)
    with pytest.raises(Conflict, match="is the only version; remove the adapter"):
        registry.remove(MAYA, "poet", 1)
    assert registry.vault.check() == []
    four = add(registry, tmp_path, seed=4)
    assert four.version == 4 and [version.version for version in registry.get(MAYA, "poet").versions] == [1, 4]
    assert registry.vault.check() == []


def test_numbers_are_never_given_twice(registry: AdapterRegistry, tmp_path: Path) -> None:
    given = []
    for seed in range(4):
        given.append(add(registry, tmp_path, seed=seed).int_id)
        registry.remove(MAYA, "poet")
    assert given == sorted(set(given)) and min(given) >= 1 << 20


def test_revision_and_existence(registry: AdapterRegistry, tmp_path: Path) -> None:
    before = registry.revision()
    stored = add(registry, tmp_path, activate=True)
    after = registry.revision()
    assert after > before and registry.exists(stored)
    registry.resolve(MAYA, "poet")
    assert registry.revision() == after
    registry.vault.delete(stored.cube_id, actor="maya")
    assert registry.revision() > after and not registry.exists(stored)


def test_another_base_model_is_not_served(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True)
    other = AdapterRegistry(registry.vault, base=dataclasses.replace(base(), name="other", fingerprint="f" * 32))
    attempts: list[Callable[[], object]] = [
        lambda: other.resolve(MAYA, "poet"),
        lambda: other.default_of(MAYA),
        lambda: other.activate(MAYA, "poet"),
    ]
    for attempt in attempts:
        with pytest.raises(AdapterUnusable, match="made for another base model, 'tiny'"):
            attempt()
    assert other.list(MAYA)[0].active == 1, "it is there all the same"


def test_a_rank_over_the_servers_is_not_served(registry: AdapterRegistry, tmp_path: Path) -> None:
    add(registry, tmp_path, activate=True)
    with pytest.raises(AdapterUnusable, match="rank 4, the limit here is 2"):
        registry_of(registry.vault, max_rank=2).resolve(MAYA, "poet")


def test_adding_needs_a_good_name_and_a_base(registry: AdapterRegistry, tmp_path: Path) -> None:
    for name in ("../poet", "Poet", "poet@v2", ""):
        with pytest.raises(BadInput, match="cannot be an adapter's name"):
            add(registry, tmp_path, name)
    with pytest.raises(BadInput, match="needs an owner"):
        add(registry, tmp_path, owner="")
    with pytest.raises(StartError, match="name the model"):
        AdapterRegistry(registry.vault).add("maya", "poet", files(tmp_path / "in"), author="maya")
    assert list((registry.vault.path / "adapters").iterdir()) == []


def test_a_frozen_adapter_gets_no_new_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    stored = add(registry, tmp_path)
    registry.vault.transition(stored.cube_id, "frozen", actor="maya")
    assert registry.activate(MAYA, "poet") == registry.resolve(MAYA, "poet") == stored
    assert registry.get(MAYA, "poet").state == "frozen"
    with pytest.raises(Conflict, match="is frozen"):
        add(registry, tmp_path, seed=1)
    assert len(list((registry.vault.path / "adapters").iterdir())) == 1 and registry.vault.check() == []


def test_a_model_that_is_no_adapter(registry: AdapterRegistry) -> None:
    for model in ("tiny", "meta-llama/Llama-3-8B", "", "a" * 10_000, "maya/poet@v1@v2", "../../etc/passwd"):
        with pytest.raises(NotFound):
            registry.resolve(MAYA, model)
