"""Long texts that a caller sends again and again: a system prompt, a document. They are spliced like memories.

After memories that differ from prompt to prompt such a text is no prefix that vLLM could find. So the rest of the
prompt is cut at the texts that are known, each is tokenised on its own, and its K/V are kept for its sender alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memos_vllm.server.fair import TenantCache
from memos_vllm.server.prompt import Message, PromptBuilder, texts_of

MIN_TOKENS = 256
MIN_CHARS = 2 * MIN_TOKENS
"""Texts with fewer characters are not even counted."""
KNOWN_AFTER = 3
"""Sights from which on a text is cut out."""
MAX_PIECES = 8
"""In one prompt."""
MAX_TEXTS = 1 << 16
TENANT_SHARE = 1 / 64


@dataclass(frozen=True)
class Piece:
    """Tokens of a prompt's rest; `sights`: how often its sender has sent them, 0 for text that is no known one."""

    ids: tuple[int, ...]
    sights: int = 0


class PieceCutter:
    """Counts the long texts of each caller, by keyed digest, and cuts prompts at those that come again. Thread-safe."""

    def __init__(self, prompts: PromptBuilder, secret: bytes) -> None:
        self._prompts, self._secret = prompts, secret
        self._sights: TenantCache[bytes, int] = TenantCache(MAX_TEXTS, TENANT_SHARE)

    def cut(self, caller: str, messages: Sequence[Message], rest: str) -> list[Piece]:
        """The tokens of `rest`, the rendered text after the memories, with the known texts among `messages` apart."""
        known: dict[str, int] = {}
        for text in long_texts(messages):
            sights = self._seen(caller, text)
            if sights >= KNOWN_AFTER and len(known) < MAX_PIECES and self._is_long(caller, text):
                known[text] = sights
        return [
            Piece(self._prompts.text_ids(text, caller), known[text])
            if text in known
            else Piece(tuple(self._prompts.rest_ids(text)))
            for text in split_at(rest, known)
        ]

    def forget(self, caller: str) -> None:
        """Let go of what is known of a caller's texts."""
        self._sights.drop(caller)

    def _seen(self, caller: str, text: str) -> int:
        digest = hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256")
        sights = (self._sights.get(caller, digest) or 0) + 1
        self._sights.put(caller, digest, sights, 1)
        return sights

    def _is_long(self, caller: str, text: str) -> bool:
        return len(self._prompts.text_ids(text, caller)) >= MIN_TOKENS


def long_texts(messages: Sequence[Message]) -> list[str]:
    """The long texts of a chat in order, each once, as templates leave them: without blanks at their ends."""
    texts = (text.strip() for message in messages for text in texts_of(message))
    return [*dict.fromkeys(text for text in texts if len(text) >= MIN_CHARS)]


def split_at(rest: str, known: Iterable[str]) -> list[str]:
    """`rest` cut before and behind each known text; they are looked for in order, and not cut where they are not found.

    What comes out, joined, is `rest`.
    """
    parts, position = [], 0
    for text in known:
        found = rest.find(text, position)
        if found >= 0:
            parts += [rest[position:found], text]
            position = found + len(text)
    return [part for part in (*parts, rest[position:]) if part]
