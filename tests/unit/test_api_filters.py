"""mem0's filter language, and cursors of the audit log."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_vllm.cube import Header, MemCube, Plaintext, completed
from memos_vllm.errors import BadInput
from memos_vllm.retrieval.base import TimeWindow
from memos_vllm.server.mem0_door import user_in
from memos_vllm.server.routes.cursors import cursor_of, seq_of
from memos_vllm.server.routes.filters import query_of
from memos_vllm.server.schemas import SearchRequest

SECRET = bytes(range(32))


def options(filters: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    return query_of(SearchRequest.model_validate({"query": "tea", "filters": filters, **body})).options()


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (None, {}),
        ({"user_id": "maya"}, {}),
        ({"user_id": "maya", "kind": "fact"}, {"filters": {"kind": "fact"}}),
        ({"AND": [{"user_id": "maya"}, {"kind": "fact"}, {"AND": [{"n": 1}]}]}, {"filters": {"kind": "fact", "n": 1}}),
        ({"OR": [{"kind": "fact"}, {"kind": ["habit", "plan"]}]}, {"filters": {"kind": ["fact", "habit", "plan"]}}),
        ({"kind": {"in": ["fact", "habit"]}}, {"filters": {"kind": ["fact", "habit"]}}),
        ({"metadata": {"kind": "fact"}}, {"filters": {"kind": "fact"}}),
        ({"run_id": "*"}, {}),
        ({"categories": {"contains": "tea"}}, {"tags": [["tea"]]}),
        ({"created_at": {"gte": "2025-01-01", "lt": "2025-02-01"}}, {"window": TimeWindow("2025-01-01", "2025-02-01")}),
        ({"created_at": {"gt": "2025-01-31", "lte": "2025-02-28"}}, {"window": TimeWindow("2025-02-01", "2025-03-01")}),
        ({"AND": [{"tags": "a"}, {"tags": ["b", "c"]}]}, {"tags": [["a"], ["b", "c"]]}),
        (
            {"AND": [{"created_at": {"gte": "2025-01-01"}}, {"created_at": {"gte": "2025-03-01"}}]},
            {"window": TimeWindow("2025-03-01", "")},
        ),
    ],
)
def test_filters_become_what_the_operator_takes(filters: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    assert options(filters) == wanted


@pytest.mark.parametrize(
    "filters",
    [
        {"NOT": [{"kind": "fact"}]},
        {"OR": [{"kind": "fact"}, {"n": 1}]},
        {"OR": [{"user_id": "maya"}, {"user_id": "tom"}]},
        {"AND": {"kind": "fact"}},
        {"AND": [{"kind": "fact"}, {"kind": "habit"}]},
        {"kind": {"like": "f%"}},
        {"created_at": {"gte": 5}},
        {"created_at": {"lte": "9999-12-31"}},
        {"n": {"gte": 5}},
    ],
)
def test_what_is_not_understood_is_refused(filters: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        options(filters)


def test_what_a_request_says_beside_filters_must_hold_too() -> None:
    assert options({"categories": "b"}, tags=["a", "c"]) == {"tags": [["a", "c"], ["b"]]}
    window = TimeWindow("2025-04-11T04:00:00.000000Z", "2025-04-12")
    assert options(since="2025-04-10T23:00:00-05:00", until="2025-04-12") == {"window": window}
    malformed: list[dict[str, Any]] = [{"since": "garbage"}, {"until": "soon"}]
    for body in malformed:
        with pytest.raises(BadInput):
            options(**body)


def test_filters_nest_only_so_deep() -> None:
    deep: dict[str, Any] = {"user_id": "maya"}
    for _ in range(100):
        deep = {"AND": [deep]}
    assert user_in(deep) is None
    with pytest.raises(BadInput, match="nested"):
        options(deep)


@pytest.mark.parametrize(
    ("filters", "user"),
    [
        ({"user_id": "maya"}, "maya"),
        ({"AND": [{"kind": "fact"}, {"AND": [{"user_id": "maya"}]}]}, "maya"),
        ({"and": [{"user_id": "maya"}]}, "maya"),
        ({"OR": [{"user_id": "maya"}]}, None),
        ({"user_id": "*"}, None),
        ({"user_id": 7}, None),
        ([{"user_id": "maya"}], None),
        (None, None),
    ],
)
def test_the_user_that_filters_name(filters: Any, user: str | None) -> None:
    assert user_in(filters) == user


def test_a_list_is_filtered_like_a_search() -> None:
    cube = MemCube.plaintext("I like tea.", owner="maya", tags=["tea", "drink"], metadata={"kind": "fact"})
    passing = [{}, {"kind": "fact"}, {"categories": ["tea", "x"]}, {"created_at": {"gte": "2020-01-01"}}]
    failing = [{"kind": "habit"}, {"categories": "x"}, {"created_at": {"lt": "2020-01-01"}}]
    passing += [{"AND": [{"tags": "tea"}, {"tags": "drink"}]}]
    failing += [{"AND": [{"tags": "tea"}, {"tags": "x"}]}]
    for filters, passes in [*((item, True) for item in passing), *((item, False) for item in failing)]:
        assert query_of(SearchRequest.model_validate({"query": "", "filters": filters})).lets_through(cube) is passes


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        ({"types": ["fact"]}, True),
        ({"types": ["episode", "user_preference"]}, False),
        ({"since": "2025-04-10"}, True),
        ({"since": "2025-04-10T00:00:00+00:00", "until": "2025-04-10T00:00:00-01:00"}, True),
        ({"since": "2025-04-10T01:00:00+01:00"}, True),
        ({"since": "2025-04-10T00:00:00-01:00"}, False),
        ({"until": "2025-04-10T00:00:00"}, False),
    ],
)
def test_a_list_knows_types_and_times(body: dict[str, Any], passes: bool) -> None:
    cube = completed(MemCube(Header(owner="maya", happened="2025-04-10"), Plaintext("I had tea.")))
    assert query_of(SearchRequest.model_validate({"query": "", **body})).lets_through(cube) is passes


@given(seq=st.integers(min_value=0, max_value=2**40 - 1))
def test_a_cursor_leads_back_to_its_entry(seq: int) -> None:
    assert seq_of(cursor_of(seq, SECRET, "maya"), SECRET, "maya") == seq


@given(seq=st.integers(min_value=0, max_value=2**40 - 1))
def test_a_cursor_is_one_users(seq: int) -> None:
    with pytest.raises(BadInput):
        seq_of(cursor_of(seq, SECRET, "maya"), SECRET, "tom")


def test_neighbouring_entries_have_unrelated_cursors() -> None:
    values = [int(cursor_of(seq, SECRET, "maya"), 16) for seq in range(1, 257)]
    assert len({value ^ values[0] for value in values}) == 256
    changed = [(one ^ other).bit_count() for one, other in pairwise(values)]
    assert 28 < sum(changed) / len(changed) < 36


@pytest.mark.parametrize("text", ["", "7", "g" * 16, "A" * 16, "0" * 17])
def test_other_texts_are_no_cursors(text: str) -> None:
    with pytest.raises(BadInput):
        seq_of(text, SECRET, "maya")
