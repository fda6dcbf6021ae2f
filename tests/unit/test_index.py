"""The index against a model of it, and what it says of its own faults."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from memos_vllm.cube import MemCube
from memos_vllm.retrieval import MemOperator
from memos_vllm.vault import Vault, index
from memos_vllm.vault.env import Txn
from memos_vllm.vault.postings import MAX_WORDS
from memos_vllm.vault.states import ALLOWED, HOT
from memos_vllm.vault.words import words_of

PEOPLE = ("maya", "bo", "group:tea")
WORDS = ("tea", "mate", "lake", "train", "sofa", "the", "茶")
K1, B = 1.2, 0.75


def problems(vault: Vault) -> list[str]:
    return vault.read(lambda txn: list(index.problems(txn)))


def naive_scores(cubes: list[MemCube], query: str) -> dict[str, float]:
    """BM25 the long way, by cube id, of the cubes that share a word with the query."""
    held = {cube.id: Counter(words_of(cube.text)) for cube in cubes}
    mean = sum(words.total() for words in held.values()) / (len(held) or 1) or 1.0
    scores: Counter[str] = Counter()
    for word in set(words_of(query)):
        holding = [cube_id for cube_id, words in held.items() if word in words]
        idf = math.log(1 + (len(held) - len(holding) + 0.5) / (len(holding) + 0.5))
        for cube_id in holding:
            count, length = held[cube_id][word], held[cube_id].total()
            scores[cube_id] += idf * count / (count + K1 * (1 - B + B * length / mean))  # type: ignore[assignment]
    return dict(scores)


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
people = st.sampled_from(PEOPLE)
readers = st.lists(people, max_size=2).map(tuple)


class IndexMachine(RuleBasedStateMachine):
    cubes = Bundle("cubes")

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(TemporaryDirectory())

    @initialize()
    def open(self) -> None:
        self.vault = self._stack.enter_context(Vault.open(Path(self._folder) / "memory"))
        self.operator = MemOperator(self.vault)
        self.held: dict[str, MemCube] = {}

    @rule(target=cubes, owner=people, words=st.lists(texts, min_size=1, max_size=3), access=readers, source=texts)
    def add(self, owner: str, words: list[str], access: tuple[str, ...], source: str) -> Any:
        new = [MemCube.plaintext(text, owner=owner, access=access, source=source) for text in words]
        added = self.vault.add(new, actor=owner)
        self.held.update((cube.id, cube) for cube in added)
        return multiple(*(cube.id for cube in added))

    @rule(cube_id=cubes, text=texts)
    def update(self, cube_id: str, text: str) -> None:
        if self.held[cube_id].header.state in HOT:
            self.held[cube_id] = self.vault.update(cube_id, text, actor="maya")

    @rule(cube_id=cubes, access=readers, tags=readers)
    def edit(self, cube_id: str, access: tuple[str, ...], tags: tuple[str, ...]) -> None:
        self.held[cube_id] = self.vault.edit(cube_id, actor="maya", access=access, tags=tags)

    @rule(cube_id=cubes, data=st.data())
    def transition(self, cube_id: str, data: st.DataObject) -> None:
        options = sorted(ALLOWED[self.held[cube_id].header.state])
        if options:
            self.held[cube_id] = self.vault.transition(cube_id, data.draw(st.sampled_from(options)), actor="maya")

    @rule(cube_id=consumes(cubes))
    def delete(self, cube_id: str) -> None:
        self.vault.delete(cube_id, actor="maya")
        del self.held[cube_id]

    @rule()
    def reindex(self) -> None:
        assert self.vault.reindex() == sum(cube.header.state in HOT for cube in self.held.values())

    @rule(principal=people, query=texts)
    def search(self, principal: str, query: str) -> None:
        readable = [cube for cube in self.held.values() if principal in cube.readers() and cube.header.state in HOT]
        assert self.vault.is_bare([principal]) == (not readable)
        expected = naive_scores(readable, query)
        best = max(expected.values(), default=1.0)
        hits = self.operator.search(principal, query, top_k=50, using=["lexical"])
        if expected:
            found = {hit.cube.id: hit.score for hit in hits}
            assert found == pytest.approx({key: score / best for key, score in expected.items()}, abs=1e-5)
            assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)
        else:
            assert {hit.cube.id for hit in hits} == {cube.id for cube in readable}
            assert all(hit.score == 0 for hit in hits)
        assert all(hit.cube == self.held[hit.cube.id] for hit in hits)

    @invariant()
    def index_equals_one_made_anew(self) -> None:
        if hasattr(self, "vault"):
            assert problems(self.vault) == []

    def teardown(self) -> None:
        self._stack.close()


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "memory") as vault:
        yield vault


def add(vault: Vault, *words: str, owner: str = "maya", **fields: Any) -> list[MemCube]:
    return vault.add([MemCube.plaintext(text, owner=owner, **fields) for text in words], actor=owner)


def test_who_can_find_nothing_is_told_from_who_can(vault: Vault) -> None:
    (cube,) = add(vault, "green tea", access=("bo",))
    assert vault.is_bare([]) and vault.is_bare(["ann", "group:tea"])
    assert not vault.is_bare(["maya"]) and not vault.is_bare(["ann", "bo"])
    vault.transition(cube.id, "archived", actor="maya")
    assert vault.is_bare(["maya", "bo"])


def write(vault: Vault, work: Callable[[Txn], object]) -> None:
    vault._env.write(work)


def test_a_partition_is_gone_with_its_last_cube_and_its_number_is_not_used_again(vault: Vault) -> None:
    first = add(vault, "tea")[0]
    number = vault.read(lambda txn: index.partition_of(txn, "maya"))
    assert number is not None and number.number == 0
    vault.delete(first.id, actor="maya")
    assert vault.read(lambda txn: [txn.count(name) for name in ("partitions", "entries", "terms")]) == [0, 0, 0]
    assert vault.read(lambda txn: index.rows_of(txn, "maya")) == 0
    add(vault, "tea")
    again = vault.read(lambda txn: index.partition_of(txn, "maya"))
    assert again is not None and again.number == 1


def test_insert_and_remove_may_be_repeated(vault: Vault) -> None:
    cube, other = add(vault, "tea and mate", "lake", access=["bo"])
    write(vault, lambda txn: index.insert(txn, cube))
    assert problems(vault) == []
    for _ in range(2):
        write(vault, lambda txn: index.remove(txn, cube))
    assert [hit.cube.id for hit in MemOperator(vault).search("bo", "tea mate lake", top_k=5)] == [other.id]
    write(vault, lambda txn: index.insert(txn, cube))
    assert problems(vault) == []


def test_a_text_is_found_by_its_first_words_only(vault: Vault) -> None:
    words = [f"word{number}" for number in range(MAX_WORDS + 1)]
    vault.add([MemCube.plaintext(" ".join(words), owner="maya")], actor="maya")
    operator = MemOperator(vault)
    assert [operator.search("maya", word, top_k=1)[0].score > 0 for word in (words[0], words[-2], words[-1])] == [
        True,
        True,
        False,
    ]
    assert vault.check() == []


def test_a_long_word_count_and_a_repeated_word_fit(vault: Vault) -> None:
    add(vault, "tea " * 70_000, "tea")
    assert problems(vault) == []
    assert len(MemOperator(vault).search("maya", "tea", top_k=5)) == 2


def test_partitions_stay_fast_after_much_churn(vault: Vault) -> None:
    """Ordinals grow with every update of who may read; sparse ones are found by another way."""
    cube = add(vault, "tea", "lake by the train")[0]
    for _ in range(40):
        vault.edit(cube.id, actor="maya", access=["bo"])
        vault.edit(cube.id, actor="maya", access=[])
        write(vault, lambda txn: index.remove(txn, cube))
        write(vault, lambda txn: index.insert(txn, cube))
    assert [hit.cube.text for hit in MemOperator(vault).search("maya", "tea", top_k=5)] == ["tea"]
    assert problems(vault) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda txn, cube: index.remove(txn, cube), "are missing or differ"),
        (lambda txn, cube: txn.delete_under("terms", bytes(4)), "rows in terms, not"),
        (lambda txn, cube: index.drop(txn, "bo"), "are missing or differ"),
        (lambda txn, cube: txn.put_dups("terms", [(bytes(12), bytes(6))]), "rows in terms, not"),
        (lambda txn, cube: txn.put("vectors", bytes(16), b"x"), "rows in vectors and unembedded, not 0"),
        (lambda txn, cube: txn.put("meta", index.EMBEDDER, bytes(8)), "has no vector and awaits none"),
        (lambda txn, cube: txn.put("meta", b"index format", bytes(4)), "of another version"),
    ],
)
def test_faults_are_found_and_mended(vault: Vault, fault: Callable[[Txn, MemCube], object], says: str) -> None:
    cube = add(vault, "tea", "tea by the lake", access=["bo"])[1]
    write(vault, lambda txn: fault(txn, cube))
    assert any(says in problem for problem in problems(vault))
    assert vault.reindex() == 2
    assert problems(vault) == []


def test_rows_of_a_principal_are_counted_and_dropped(vault: Vault) -> None:
    add(vault, "tea by the lake", access=["bo"])
    add(vault, "mate", owner="bo")
    rows = vault.read(lambda txn: index.rows_of(txn, "bo"))
    write(vault, lambda txn: index.drop(txn, "bo"))
    assert rows > 0 == vault.read(lambda txn: index.rows_of(txn, "bo"))
    assert MemOperator(vault).search("bo", "tea", top_k=5) == []
    assert len(MemOperator(vault).search("maya", "tea", top_k=5)) == 1
