"""Two engines behind one server: a memory that one of them captured is spliced by both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.conftest import running_server
from tests.server.test_splice_http import ask, text_of, wait_for_kv

pytestmark = pytest.mark.server

USER = {"x-memos-user-id": "maya"}
QUESTION = "What is my favourite tea?"


def test_both_engines_splice_and_answer_alike(tmp_path: Path) -> None:
    with running_server(tmp_path, "--memory-promote", "all", "--data-parallel-size", "2") as server:
        ids = server.remember("maya", "My favourite tea is oolong.", "My dog is Biscuit.")
        named = USER | {"x-memos-cubes": ",".join(ids)}
        wait_for_kv(server, named)
        answers = [
            ask(server, QUESTION, named | {"x-memos-repair": "full", "x-data-parallel-rank": str(rank)})
            for rank in (0, 1, 0, 1)
        ]
        sources = [answer.headers["x-memos-kv-source"] for answer in answers]
        assert {text_of(answer) for answer in answers} == {text_of(ask(server, QUESTION, named))}
        assert all("oolong" in text_of(answer) for answer in answers)
        assert all(int(answer.headers["x-memos-spliced-tokens"]) for answer in answers)
        assert sources[2:] == ["ram", "ram"], "each engine has its own RAM tier"
        with server.http(**USER) as client:
            client.delete(f"/v1/memories/{ids[0]}").raise_for_status()
        gone = ask(server, QUESTION, USER)
        assert "oolong" not in text_of(gone)
