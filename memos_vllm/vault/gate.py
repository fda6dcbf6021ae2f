"""Transactions of one process, kept apart from what may not run beside them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Many transactions at a time, or one resize and no transaction, or one transaction alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._resizing = False
        self._alone = False

    @property
    def is_open(self) -> bool:
        """Whether a transaction would begin without waiting now."""
        return not self._resizing and not self._alone

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self.is_open)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the one writer, inside its transaction: the others end theirs and begin none meanwhile."""
        with self._changed:
            self._alone = True
            self._changed.wait_for(lambda: self._inside == 1)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    @contextmanager
    def resize(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._resizing)
            self._resizing = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._resizing = False
                self._changed.notify_all()
