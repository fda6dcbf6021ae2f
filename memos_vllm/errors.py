"""Every error this project raises on purpose: one line that says what is wrong and what to do about it."""

from typing import ClassVar


class MemosError(Exception):
    """Base of all errors here. `status` is the HTTP status it is answered with."""

    status: ClassVar[int] = 500


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


class TooLarge(MemosError):
    """A payload is over its limit."""

    status = 413


class KVUnusable(MemosError):
    """A KV file is missing, truncated, corrupt or foreign; callers fall back to text."""


class VaultUnavailable(MemosError):
    """The vault cannot be read or written now: closed, locked, damaged, or carried over a fork."""

    status = 503


class VaultFull(MemosError):
    """The vault reached its size limit or the disk is full; nothing of the write was stored."""

    status = 507


class StartError(MemosError):
    """Something is wrong before the server starts: printed as one line, exit code 2."""


class NotAVault(StartError):
    """The memory directory holds something else, a newer format, or a damaged vault."""


class VaultUnwritable(StartError):
    """The memory directory cannot be created, read or written by this user."""
