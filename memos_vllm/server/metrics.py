"""Prometheus metrics of the API process; vLLM's `/metrics` shows them beside its own and the engine's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_SEARCH_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CAPTURE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@cache
def fallbacks() -> Counter:
    """Prompts that were served with less memory help than asked for, by cause."""
    return Counter("memos_fallbacks", "Prompts served with less memory help than asked for", ["cause"])


@cache
def prompts() -> Counter:
    """Prompts that carried memories, by form (`spliced` or `text`)."""
    return Counter("memos_prompts", "Prompts that carried memories", ["form"])


@cache
def prompt_tokens() -> Counter:
    """Tokens of prompts that carried memories, by what became of them.

    `cached` in the prefix cache, `spliced` from K/V, `repaired` and `computed` by the model.
    """
    return Counter("memos_prompt_tokens", "Tokens of prompts that carried memories", ["source"])


@cache
def search_seconds() -> Histogram:
    """Time to choose the memories of a prompt."""
    return Histogram("memos_search_seconds", "Time to choose the memories of a prompt", buckets=_SEARCH_SECONDS)


@cache
def captures() -> Counter:
    """Background captures of cubes, by outcome (`done`, `failed`, `dropped`)."""
    return Counter("memos_captures", "Background captures of cubes", ["outcome"])


@cache
def capture_seconds() -> Histogram:
    """Time of a capture from its prefill to its row in the manifest."""
    return Histogram("memos_capture_seconds", "Time of a capture, manifest included", buckets=_CAPTURE_SECONDS)


@cache
def captures_waiting() -> Gauge:
    """Captures in the queue."""
    return Gauge("memos_captures_waiting", "Captures in the queue", multiprocess_mode="livesum")


@cache
def promotions() -> Counter:
    """Cubes that were chosen to become K/V, by reason (`long`, `hot`, `pinned`, `all`, `piece`)."""
    return Counter("memos_promotions", "Cubes chosen to become K/V", ["reason"])


@cache
def demotions() -> Counter:
    """K/V that are text again, by cause: `gone` from disk, `idle` for long, `superseded` by an update, `deleted`,
    `asleep` with a memory that was archived or has expired.
    """
    return Counter("memos_demotions", "K/V that are text again", ["cause"])


@cache
def transitions() -> Counter:
    """Memories that the lifecycle gave another state: `activated` by a use, `archived` by fading, `expired`."""
    return Counter("memos_transitions", "Memories that the lifecycle gave another state", ["state"])


@cache
def swept() -> Counter:
    """Memories that sweeps of the lifecycle looked at."""
    return Counter("memos_swept", "Memories that sweeps of the lifecycle looked at")


@cache
def sweep_seconds() -> Histogram:
    """Time of one step of a sweep, a rest between two of them not counted."""
    return Histogram("memos_sweep_seconds", "Time of one step of a lifecycle sweep", buckets=_SEARCH_SECONDS)


@cache
def planned() -> Counter:
    """Prompts whose memories were chosen, by policy."""
    return Counter("memos_planned", "Prompts whose memories were chosen", ["policy"])


@cache
def turn_memories() -> Counter:
    """Memories of a conversation's turn before, by what became of them: `kept` in their place, or `left`."""
    return Counter("memos_turn_memories", "Memories of a conversation's turn before", ["outcome"])


@cache
def turns() -> Counter:
    """Chat turns that memories were to be made of, by outcome.

    `written`; `nothing` new in it; `dropped`, for too many waited or the server stopped; `failed`; `forgotten` by their
    user before they were written.
    """
    return Counter("memos_turns", "Chat turns that memories were to be made of", ["outcome"])


@cache
def turns_waiting() -> Gauge:
    """Chat turns of which no memories are made yet."""
    return Gauge("memos_turns_waiting", "Chat turns of which no memories are made yet", multiprocess_mode="livesum")


@cache
def memories_written() -> Counter:
    """What readers found in messages, by what became of it: `add`, `update`, or `none` where it was known."""
    return Counter("memos_memories_written", "What readers found in messages", ["event"])


@cache
def reader_fallbacks() -> Counter:
    """Conversations that rules read in the model's place, by cause."""
    return Counter("memos_reader_fallbacks", "Conversations that rules read in the model's place", ["cause"])


@cache
def vectors_waiting() -> Gauge:
    """Memories that are found by their words alone until the embedder has come to them. Every API server tells."""
    return Gauge("memos_vectors_waiting", "Memories that wait for a vector", multiprocess_mode="livemostrecent")


@cache
def trainings() -> Counter:
    """Trainings of adapters that were asked for, by kind (`train`, `retrain`, `resume`)."""
    return Counter("memos_trainings", "Trainings of adapters that were asked for", ["kind"])


@cache
def adapter_requests() -> Counter:
    """Requests with a user's adapter, by how it was chosen (`named`, `default`)."""
    return Counter("memos_adapter_requests", "Requests with a user's adapter", ["choice"])


@cache
def adapter_stage_seconds() -> Histogram:
    """Time to copy an adapter for the engine and to compare the copy."""
    return Histogram("memos_adapter_stage_seconds", "Time to copy an adapter for the engine", buckets=_CAPTURE_SECONDS)


@cache
def adapter_load_seconds() -> Histogram:
    """Time in which the engine loads an adapter for its first request."""
    return Histogram("memos_adapter_load_seconds", "Time of an adapter's first load", buckets=_CAPTURE_SECONDS)


@cache
def adapter_evictions() -> Counter:
    """Copies of adapters that were removed, for want of room or with their version."""
    return Counter("memos_adapter_evictions", "Copies of adapters that were removed")


@cache
def consolidations() -> Counter:
    """Trainings that the scheduler began, by what became of them (`started`, then as the job ends)."""
    return Counter("memos_consolidations", "Trainings that the scheduler began", ["outcome"])


@cache
def consolidation_looks() -> Counter:
    """Looks at a user's memories, by what came of them (`worth` a training, or `nothing`)."""
    return Counter("memos_consolidation_looks", "Looks at what an adapter should know", ["outcome"])


@cache
def learned() -> Counter:
    """What prompts did without because the adapter that answers knows it (`memories`, `tokens`)."""
    return Counter("memos_learned", "What prompts did without because an adapter knows it", ["unit"])


def engine_loads(registry: CollectorRegistry = REGISTRY) -> tuple[float, float, float]:
    """What the engine's metrics tell of its splices so far: bytes, seconds, and number of splices."""
    wanted = {"memos_kv_loaded_bytes_total": 0.0, "memos_kv_load_seconds_sum": 0.0, "memos_kv_load_seconds_count": 0.0}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name in wanted and sample.labels.get("tier", "ram") == "ram":
                wanted[sample.name] += sample.value
    loaded, seconds, splices = wanted.values()
    return loaded, seconds, splices


ALL: tuple[Callable[[], Any], ...] = (
    *(fallbacks, prompts, prompt_tokens, search_seconds),
    *(captures, capture_seconds, captures_waiting, promotions, demotions),
    *(transitions, swept, sweep_seconds, planned, turn_memories),
    *(turns, turns_waiting, memories_written, reader_fallbacks, vectors_waiting, trainings),
    *(adapter_requests, adapter_stage_seconds, adapter_load_seconds, adapter_evictions),
    *(consolidations, consolidation_looks, learned),
)


def create() -> None:
    """Register the metrics. With several API servers vLLM must have set its multiprocess directory before."""
    for metric in ALL:
        metric()
