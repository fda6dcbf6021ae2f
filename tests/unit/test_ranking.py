import numpy as np
import pytest

from memos_vllm.retrieval.dates import Month, months_in
from memos_vllm.retrieval.ranking import Neighbours, Ranking, bm25, fused, hints, scaled


def array(*values: float) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(values, dtype=np.float32)


def test_neighbours_give_their_share_within_their_conversation() -> None:
    conversations = np.array([1, 1, 1, 2, 2])
    given = Neighbours(lambda n: conversations[n:] == conversations[:-n], {-1: 0.5, 2: 0.1}).given(array(1, 0, 2, 4, 0))
    assert given.tolist() == pytest.approx([1 + 0.2, 0.5, 2, 4, 2])


def test_neighbours_beyond_a_short_scope_are_none() -> None:
    masks = {1: np.zeros(0, dtype=bool), 3: np.zeros(0, dtype=bool)}
    assert Neighbours(masks.__getitem__, {1: 0.5, -3: 0.5}).given(array(2)).tolist() == [2]


def test_bm25_prefers_rare_words_and_short_texts() -> None:
    lengths = array(4, 4, 40, 4)
    rare, common, long, none = bm25(np.stack([array(1, 0, 0, 0), array(0, 1, 1, 0)]), lengths).tolist()
    assert rare > common > long > none == 0


def test_bm25_of_nothing() -> None:
    assert bm25(np.zeros((0, 3), dtype=np.float32), array(1, 1, 1)).tolist() == [0, 0, 0]
    assert bm25(np.zeros((2, 2), dtype=np.float32), array(0, 0)).tolist() == [0, 0]


def test_fusion_brings_both_to_one_scale() -> None:
    assert fused(array(10, 5, 0), None).tolist() == [1, 0.5, 0]
    assert fused(array(10, 5, 0), array(-0.1, 0.2, 0.4), Ranking(dense=0.5)).tolist() == pytest.approx([1, 0.75, 0.5])
    assert scaled(array(-1, 0)).tolist() == [0, 0]


def test_hints() -> None:
    yes, no = np.array([True]), np.array([False])
    plain = hints(array(8), no, no, no)[0]
    assert plain == pytest.approx(0.1)
    assert hints(array(8), yes, no, no)[0] == pytest.approx(plain - 0.1, abs=1e-6)
    assert hints(array(8), no, yes, yes)[0] == pytest.approx(plain + 0.4)


@pytest.mark.parametrize(
    ("query", "months"),
    [
        ("What happened in May 2023?", [Month(2023, 5)]),
        ("what may have happened", []),
        ("on 7 June or the 1st of sept., 2022", [Month(0, 6), Month(2022, 9)]),
        ("March 3rd, 2021 and all of 2019", [Month(2021, 3), Month(2019, 0)]),
        ("marching bands since 12023", []),
    ],
)
def test_months_in_a_question(query: str, months: list[Month]) -> None:
    assert months_in(query) == months
