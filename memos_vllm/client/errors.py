"""Error answers of the server as exceptions: each is an `ApiError` and the server's own class of that status."""

from __future__ import annotations

import msgspec

from memos_vllm import errors


class ApiError(errors.MemosError):
    """An error answer. `status_code`: HTTP status; `kind`: OpenAI's error type; `retry_after`: seconds, where sent."""

    def __init__(self, message: str, status_code: int = 500, kind: str = "", retry_after: float | None = None) -> None:
        Exception.__init__(self, message)
        self.status_code = status_code
        self.kind = kind
        self.retry_after = retry_after


class BadRequestError(ApiError, errors.BadInput):
    """400: the request is malformed or does not say whose memories it means."""


class AuthenticationError(ApiError, errors.Unauthorized):
    """401: no API key, or one that is not known."""


class PermissionDeniedError(ApiError, errors.Forbidden):
    """403: the caller may not do this."""


class NotFoundError(ApiError, errors.NotFound):
    """404: there is no such thing among those the caller may see."""


class ConflictError(ApiError, errors.Conflict):
    """409: the request contradicts what is stored."""


class TooLargeError(ApiError, errors.TooLarge):
    """413: a text or a quota is over its limit."""


class RateLimitError(ApiError, errors.RateLimited):
    """429: too many requests; `retry_after` says when to try again."""


class UnavailableError(ApiError, errors.VaultUnavailable):
    """503: the vault cannot be used now."""


class FullError(ApiError, errors.VaultFull):
    """507: the vault is full; nothing was stored."""


class ConnectionFailed(ApiError):
    """The server did not answer: not reachable, or not in time."""


CLASSES: dict[int, type[ApiError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    429: RateLimitError,
    503: UnavailableError,
    507: FullError,
}


class _Detail(msgspec.Struct):
    message: str = ""
    type: str = ""


class _Body(msgspec.Struct):
    error: _Detail | str | None = None


def error_of(status: int, body: bytes, retry_after: str | None) -> ApiError:
    """The exception for an error answer; the body may be anything, as a proxy may have sent it."""
    try:
        error = msgspec.json.decode(body, type=_Body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        error = None
    detail = error if isinstance(error, _Detail) else _Detail(error or "")
    message = detail.message or f"The server answered with status {status}: {body[:200].decode(errors='replace')}"
    return CLASSES.get(status, ApiError)(message, status, detail.type, _seconds(retry_after))


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
