"""Texts made to be slow to read: all rules read them in time that grows with the length, not faster."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from memos_vllm.cube import MemCube
from memos_vllm.reader import RuleReader, Spoken, call_of, reconcile
from memos_vllm.retrieval.dates import months_in
from memos_vllm.retrieval.sentences import sentence_scores

AT = datetime(2026, 3, 12, 15, 30, tzinfo=UTC)
LENGTH = 20_000
PATIENCE = 3.0
"""CPU seconds of this process: some thirty times what a text takes."""
RUNS = [
    *(" ", ".", "\n", ",", "-", "?", "_", ">", "\t", "…", "。", '"', ";", ":", "—", " .", "? ", "\n ", "\u2003"),
    *("and I ", "now, ", "a:\n- ", "since I am, ", "-what ", ", or ", "```\n", "~~~ ", "    a\n", "1. ", "x. "),
    *("I prefer a to b ", "My ", "may 1 ", "the day before ", "I like tea and I like ham ", "It is so. ", "call me "),
]


@contextmanager
def in_time() -> Iterator[None]:
    """TimeoutError after PATIENCE; a regular expression is interrupted too."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("run", RUNS)
def test_a_long_run_is_read_in_time(run: str) -> None:
    runs = run * (LENGTH // len(run))
    text = f"I like tea{runs}very much. I prefer {runs}?"
    with in_time():
        drafts = RuleReader().drafts([Spoken("user", text)], AT)
        call_of(text, "maya", AT)
        sentence_scores("tea", text)
        months_in(text)
        known = MemCube.plaintext(text[:LENGTH], owner="maya")
        reconcile(RuleReader().drafts([Spoken("user", "I like tea.")], AT) + drafts[:4], [known], at=AT)
