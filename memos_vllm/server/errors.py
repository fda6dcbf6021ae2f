"""Errors as HTTP answers, in the shape that OpenAI's and mem0's clients read."""

from __future__ import annotations

import math
from http import HTTPStatus

from starlette.responses import JSONResponse

from memos_vllm.errors import MemosError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_response(error: MemosError, param: str | None = None) -> JSONResponse:
    """`{"error": {"message", "type", "param", "code"}}` with the error's own status."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    body = {"error": {"message": str(error), "type": kind, "param": param, "code": error.status}}
    headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return JSONResponse(body, error.status, headers)
