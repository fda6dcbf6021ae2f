"""What the client makes of answers that are no success, and what importing it loads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from memos_vllm import errors
from memos_vllm.client import ApiError, MemosClient, calls
from memos_vllm.client.errors import CLASSES, error_of

REFUSAL = b'{"error": {"message": "No.", "type": "permission_error", "param": null, "code": 403}}'


@pytest.mark.parametrize("status", sorted(CLASSES))
def test_each_status_has_its_class(status: int) -> None:
    error = error_of(status, REFUSAL, None)
    assert type(error) is CLASSES[status]
    assert (str(error), error.status_code, error.kind) == ("No.", status, "permission_error")
    assert error.status == status, "the server's own class of that status"


@pytest.mark.parametrize(
    "call",
    [
        lambda: calls.add("My favourite tea is oolong.", access="tom"),
        lambda: calls.add("My favourite tea is oolong.", tags="tea"),
        lambda: calls.add("My favourite tea is oolong.", sensitivity="health"),
        lambda: calls.search("tea", types="fact"),
        lambda: calls.search("tea", tags="tea"),
        lambda: calls.search("tea", using="lexical"),
        lambda: calls.edit("id", tags="tea"),
        lambda: calls.edit("id", sensitivity="health"),
        lambda: calls.delete_many("id"),
        lambda: calls.share("id", "tom", "read"),  # type: ignore[arg-type]
    ],
)
def test_a_text_is_not_taken_for_its_letters(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="give a list"):
        call()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "The server answered with status 502: <html>Bad gateway</html>"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"detail": "Not Found"}', 'The server answered with status 502: {"detail": "Not Found"}'),
        (b"\xff\xfe", "The server answered with status 502: \ufffd\ufffd"),
        (b"[1]", "The server answered with status 502: [1]"),
        (b"", "The server answered with status 502: "),
    ],
)
def test_answers_of_others_are_errors_too(body: bytes, message: str) -> None:
    error = error_of(502, body, None)
    assert type(error) is ApiError
    assert (str(error), error.status_code) == (message, 502)


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), (None, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
def test_when_to_try_again(header: str | None, seconds: float | None) -> None:
    error = error_of(429, REFUSAL, header)
    assert error.retry_after == seconds
    assert isinstance(error, errors.RateLimited)


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """The address of an HTTP server that is no memory server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("body", [b"<html>", b'{"results": 5}', b"{}", b'{"results": [{"id": 5}]}'])
def test_a_success_that_is_none_of_ours_is_an_error(body: bytes) -> None:
    refused = pytest.raises(ApiError, match="something else than a memory server")
    with answering(body) as url, MemosClient(url) as client, refused:
        client.search("tea")


def test_importing_the_client_loads_little() -> None:
    program = (
        "import sys, memos_vllm.client;"
        "print(*sorted(set(sys.modules) & {'torch', 'vllm', 'pydantic', 'numpy', 'lmdb', 'fastapi'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
