from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from memos_vllm.cube import Header, MemCube, Parameter, completed
from memos_vllm.errors import StartError
from memos_vllm.retrieval import Hit, LexicalOperator
from memos_vllm.scheduler import MemScheduler
from memos_vllm.vault import Vault


class Fixed:
    """An operator with a fixed ranking."""

    def __init__(self, cubes: list[MemCube]) -> None:
        self.cubes = cubes

    def search(self, principal: str, query: str, *, top_k: int, filters: Mapping[str, Any] | None = None) -> list[Hit]:
        return [Hit(cube, 1.0) for cube in self.cubes[:top_k]]

    def sentence_scores(self, query: str, text: str) -> list[tuple[int, int, float]]:
        return []


def words(cube: MemCube) -> int:
    return len(cube.text.split())


def cubes_of(*texts: str) -> list[MemCube]:
    return [MemCube.plaintext(text, owner="maya") for text in texts]


def chosen(cubes: list[MemCube], top_k: int, token_budget: int) -> list[str]:
    scheduler = MemScheduler(Fixed(cubes), top_k=top_k, token_budget=token_budget)
    return [cube.text for cube in scheduler.choose("maya", "q", words)]


def test_the_order_is_by_id_and_not_by_rank() -> None:
    cubes = cubes_of("a", "b", "c")
    in_order = [cube.text for cube in sorted(cubes, key=lambda cube: cube.id)]
    assert chosen(cubes, 3, 100) == chosen(cubes[::-1], 3, 100) == in_order


def test_the_budget_is_kept_and_filled_best_first() -> None:
    cubes = cubes_of("one", "two two two", "three three", "four")
    assert set(chosen(cubes, 4, 3)) == {"one", "three three"}
    assert set(chosen(cubes, 4, 2)) == {"one", "four"}
    assert set(chosen(cubes, 4, 7)) == {cube.text for cube in cubes}
    assert set(chosen(cubes, 1, 100)) == {"one"}


def test_payloads_without_text_are_passed_over() -> None:
    lora = completed(MemCube(Header(owner="maya"), Parameter("d", "m", 8, 1.0, ("q_proj",))))
    assert chosen([lora, *cubes_of("a")], 5, 5) == ["a"]


@pytest.mark.parametrize(("top_k", "token_budget"), [(0, 5), (5, 0), (-1, 5)])
def test_useless_settings_stop_the_start(top_k: int, token_budget: int) -> None:
    with pytest.raises(StartError):
        MemScheduler(Fixed([]), top_k=top_k, token_budget=token_budget)


def test_with_a_real_search(tmp_path: Path) -> None:
    with Vault.open(tmp_path / "memory") as vault:
        vault.add(cubes_of("I drink green tea", "My dog is called Rex", "Tea makes me calm"), actor="maya")
        scheduler = MemScheduler(LexicalOperator(vault), top_k=5, token_budget=50)
        assert {cube.text for cube in scheduler.choose("maya", "Which tea?", words)} == {
            "I drink green tea",
            "Tea makes me calm",
        }
        assert scheduler.choose("bo", "Which tea?", words) == []
