"""Our log lines without sensitive content: errors may quote a piece of what a person wrote."""

import logging
import traceback
from collections.abc import Callable

from memos_vllm.governance.sensitive import redact

OURS = "memos_vllm"


def redact_logs() -> None:
    """Have every record of our loggers made without sensitive content, whoever handles it. Does nothing twice.

    A filter of a logger would miss its children's records, and one of a handler those of other handlers.
    """
    made = logging.getLogRecordFactory()
    if not isinstance(made, _Redacting):
        logging.setLogRecordFactory(_Redacting(made))


class _Redacting:
    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory

    def __call__(self, *args: object, **kwargs: object) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        if record.name == OURS or record.name.startswith(f"{OURS}."):
            _clean(record)
        return record


def _clean(record: logging.LogRecord) -> None:
    """Format the message now, so that nothing is left to fill in; a formatter takes `exc_text` for the traceback."""
    record.msg, record.args = redact(record.getMessage()).text, None
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip("\n")).text
