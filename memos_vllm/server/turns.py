"""Which conversation a chat request goes on with: OpenAI's API has no name for one, so its messages are the name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from memos_vllm.server.prompt import Message, texts_of

_SPOKEN = ("user", "assistant")


def turn_keys(user: str, messages: Sequence[Message]) -> list[bytes]:
    """A key for each of the conversation's turns, oldest first: what was said from its beginning to a user's message.

    Each turn's messages begin with those of the turn before, so its keys do as well. What the system says is not part
    of it: clients put the time of day there.
    """
    state = hashlib.blake2b(_part(user), digest_size=16)
    keys = []
    for message in messages:
        if message.get("role") in _SPOKEN:
            state.update(b"".join(map(_part, (str(message["role"]), *texts_of(message)))) + _part(""))
            if message["role"] == "user":
                keys.append(state.digest())
    return keys


def _part(text: str) -> bytes:
    """The text behind its length, so that no two rows of texts make the same bytes."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8) + data
