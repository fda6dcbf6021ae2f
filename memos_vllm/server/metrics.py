"""Prometheus counters of the API process; vLLM's `/metrics` shows them."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter


@cache
def fallbacks() -> Counter:
    """Prompts that were served with less memory help than asked for, by cause."""
    return Counter("memos_fallbacks", "Prompts served with less memory help than asked for", ["cause"])


@cache
def prompts() -> Counter:
    """Prompts that carried memories, by form (`spliced` or `text`)."""
    return Counter("memos_prompts", "Prompts that carried memories", ["form"])


@cache
def captures() -> Counter:
    """Background captures of cubes, by outcome (`done`, `failed`, `dropped`)."""
    return Counter("memos_captures", "Background captures of cubes", ["outcome"])


def create() -> None:
    """Register the counters. With several API servers vLLM must have set its multiprocess directory before."""
    fallbacks()
    prompts()
    captures()
