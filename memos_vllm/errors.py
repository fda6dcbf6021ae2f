"""Every error this project raises on purpose: one line that says what is wrong and what to do about it."""

from typing import ClassVar


class MemosError(Exception):
    """Base of all errors here. `status` is the HTTP status it is answered with.

    retry_after: seconds after which the same request may succeed; None where waiting does not help.
    """

    status: ClassVar[int] = 500
    retry_after: float | None = None


class BadInput(MemosError):
    """A value from a caller is malformed."""

    status = 400


class NotPlaintext(BadInput, TypeError):
    """The text of a cube was asked for whose payload is no text."""


class PlanRefused(MemosError):
    """A splice plan is unsigned, altered, or meant for another prompt."""

    status = 400


class Unauthorized(MemosError):
    """No API key, or one that is not known."""

    status = 401


class Forbidden(MemosError):
    """The caller is known but may not do this."""

    status = 403


class NotFound(MemosError):
    """There is no such cube, version or record."""

    status = 404


class Conflict(MemosError):
    """The request contradicts what is stored already."""

    status = 409


class AdapterInactive(Conflict):
    """An adapter was named that serves nobody now: no version is active, or it is archived or expired."""


class AdapterUnusable(Conflict):
    """An adapter cannot be served here: another base model, a rank over the limit, files missing or damaged."""


class TooLarge(MemosError):
    """A payload is over its limit."""

    status = 413


class QuotaExceeded(TooLarge):
    """A write would take its owner over their quota of cubes or bytes; nothing of it was stored."""

    def __init__(self, message: str, owner: str) -> None:
        super().__init__(message)
        self.owner = owner

    def for_others(self) -> "QuotaExceeded":
        """The same for somebody else than the owner, without saying how much they have."""
        return QuotaExceeded(f"{self.owner!r} has no room for this: their quota of memories is used up.", self.owner)


class RateLimited(MemosError):
    """A user sends more requests a second than their quota allows."""

    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KVUnusable(MemosError):
    """A KV file is missing, truncated, corrupt or foreign; callers fall back to text."""


class VaultUnavailable(MemosError):
    """The vault cannot be read or written now: closed, locked, damaged, or carried over a fork."""

    status = 503


class EmbedderUnavailable(MemosError):
    """The embedder of memory search fails or does not answer; searches go by words meanwhile."""

    status = 503


class VaultFull(MemosError):
    """The vault reached its size limit or the disk is full; nothing of the write was stored."""

    status = 507


class Forgotten(MemosError):
    """The memories of whom a write is for were all deleted since it began; nothing of it was stored."""

    status = 409


class BackupFailed(MemosError):
    """A backup or restore was not made: its target is in the way, or the copy is not whole."""


class ReaderFailed(MemosError):
    """The served model said nothing usable about what to remember; the rules read the messages instead."""

    status = 503


class StartError(MemosError):
    """Something is wrong before the server starts: printed as one line, exit code 2."""


class NotAVault(StartError):
    """The memory directory holds something else, a newer format, or a damaged vault."""


class VaultInUse(StartError):
    """Another process has the vault open, or works on its whole file."""


class VaultUnwritable(StartError):
    """The memory directory cannot be created, read or written by this user."""
