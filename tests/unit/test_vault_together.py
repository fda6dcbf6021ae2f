"""Group commit: writes of several threads share a transaction, and none of them notices the others."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.errors import Conflict, MemosError, TooLarge, VaultFull, VaultUnavailable
from memos_vllm.vault import Usage, Vault
from memos_vllm.vault.together import MAX_WRITES
from tests.unit.vault_cases import add, texts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory"


@pytest.fixture
def vault(path: Path) -> Iterator[Vault]:
    with Vault.open(path) as vault:
        yield vault
        assert vault.check() == [] and vault.verify_log() == []


@contextmanager
def waiting(vault: Vault, calls: list[Callable[[], Any]]) -> Iterator[list[Any]]:
    """Have every call wait for the writer, in order, and go on together afterwards; the list gets their outcomes."""
    outcomes: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            outcomes[place] = calls[place]()
        except MemosError as error:
            outcomes[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    with vault._env._writer:
        for place, thread in enumerate(threads):
            thread.start()
            while len(vault._env._together._waiting) <= place:
                time.sleep(0.001)
        yield outcomes
    for thread in threads:
        thread.join()


def commits(vault: Vault) -> int:
    return int(vault._env._env.info()["last_txnid"])


def test_writes_that_wait_share_one_commit(vault: Vault) -> None:
    before = commits(vault)
    with waiting(vault, [partial(add, vault, f"text {n}", owner=f"user {n % 3}") for n in range(10)]) as outcomes:
        pass
    assert commits(vault) == before + 1
    assert [texts(cubes) for cubes in outcomes] == [[f"text {n}"] for n in range(10)]
    assert [vault.usage(f"user {n}").cubes for n in range(3)] == [4, 3, 3]


def test_many_threads(vault: Vault) -> None:
    def work(name: str) -> None:
        for n in range(10):
            (cube,) = add(vault, f"{name} {n}", owner=name)
            vault.update(cube.id, f"{name} {n} again", actor=name)

    threads = [threading.Thread(target=work, args=(f"user {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        assert texts(vault.list(f"user {n}")) == [f"user {n} {m} again" for m in range(10)]


def test_one_that_fails_leaves_the_others_alone(vault: Vault) -> None:
    (cube,) = add(vault, "a")
    calls: list[Callable[[], Any]] = [
        lambda: vault.update(cube.id, "b", actor="maya", expect=1),
        lambda: vault.update(cube.id, "c", actor="maya", expect=1),
        lambda: add(vault, "d"),
        lambda: vault.transition(cube.id, "generated", actor="maya"),
        lambda: vault.update(cube.id, "e", actor="maya", expect=2),
    ]
    with waiting(vault, calls) as outcomes:
        pass
    assert isinstance(outcomes[1], Conflict) and "version 2, not 1" in str(outcomes[1])
    assert isinstance(outcomes[3], Conflict) and outcomes[4].version == 3
    assert texts(vault.list("maya")) == ["e", "d"]
    assert [entry.action for entry in vault.log()][-3:] == ["update", "add", "update"]


def test_refused_writes_share_the_commit_of_the_others(vault: Vault) -> None:
    (cube,) = add(vault, "a")
    before, called = commits(vault), []

    def text(n: int) -> Any:
        called.append(n)
        return add(vault, f"text {n}") if n % 2 else vault.update(cube.id, "b", actor="maya", expect=9)

    with waiting(vault, [partial(text, n) for n in range(8)]) as outcomes:
        pass
    assert commits(vault) == before + 1 and called == [*range(8)]
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [True, False] * 4


def test_quotas_count_one_write_after_the_other(vault: Vault) -> None:
    def guard(_owner: str, _before: Usage, after: Usage) -> None:
        if after.cubes > 2:
            raise TooLarge("two are enough")

    vault.quota_guard = guard
    with waiting(vault, [partial(add, vault, f"text {n}") for n in range(4)]) as outcomes:
        pass
    assert [isinstance(outcome, TooLarge) for outcome in outcomes] == [False, False, True, True]
    assert vault.usage("maya").cubes == 2


def test_more_than_one_commit_takes(vault: Vault) -> None:
    count = MAX_WRITES + 5
    before = commits(vault)
    with waiting(vault, [partial(add, vault, f"text {n}") for n in range(count)]):
        pass
    assert commits(vault) == before + 2 and vault.usage("maya").cubes == count


def test_what_does_not_fit_keeps_nobody_out(path: Path) -> None:
    with Vault.open(path, map_bytes=1 << 20, max_bytes=1 << 20) as vault:
        big = MemCube.plaintext("x" * 1_000_000, owner="maya")
        calls: list[Callable[[], Any]] = [lambda: add(vault, "a"), lambda: vault.add([big], actor="maya")]
        with waiting(vault, [*calls, lambda: add(vault, "b")]) as outcomes:
            pass
        assert [isinstance(outcome, VaultFull) for outcome in outcomes] == [False, True, False]
        assert texts(vault.list("maya")) == ["a", "b"] and vault.check() == []


def test_a_vault_that_was_closed_meanwhile(path: Path) -> None:
    vault = Vault.open(path)
    env = vault._env
    vault.close()
    with pytest.raises(VaultUnavailable, match="closed"):
        env.write_together(lambda txn: None)
