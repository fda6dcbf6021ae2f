"""Group commit: what several threads write at the same time becomes one transaction, with one wait for the disk."""

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import lmdb

from memos_vllm.errors import MemosError
from memos_vllm.vault.txn import Txn

MAX_WRITES = 64

Result = TypeVar("Result")


class Write(Protocol):
    """`Environment.write`."""

    def __call__(self, work: Callable[[Txn], Any]) -> Any: ...


class Together:
    """Who comes first writes for all who wait: in order, each as if alone, and all told when it is on disk."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[_Entry] = []
        self._led = False

    def run(self, work: Callable[[Txn], Result]) -> Result:
        """`work` as a part of one transaction; it runs again where the transaction does, with or without others.

        Raises what `work` raises, then nothing of it is stored, and what `Environment.write` raises.
        """
        entry = _Entry(work)
        with self._lock:
            self._waiting.append(entry)
            entry.leads, self._led = not self._led, True
        try:
            if not entry.leads:
                entry.called.wait()
            while not entry.done:
                self._lead(entry)
        finally:
            self._leave(entry)
        if entry.error is not None:
            raise entry.error
        result: Result = entry.result
        return result

    def _lead(self, own: "_Entry") -> None:
        """One transaction for all who wait. Where one of them raises after it wrote, the others wait for another."""
        taken: list[_Entry] = []

        def work(txn: Txn) -> None:
            if not taken:
                taken.extend(self._taken(own))
            for entry in taken:
                entry.run(txn)

        try:
            self._write(work)
        except _Refused as refused:
            refused.entry.end(refused.error)
        except MemosError as error:
            self._one_by_one(taken or [own], error)
        else:
            for entry in taken:
                entry.end(entry.error)
        finally:
            with self._lock:
                self._waiting[:0] = [entry for entry in taken if entry is not own and not entry.done]

    def _leave(self, entry: "_Entry") -> None:
        """Whoever waits longest leads next."""
        with self._lock:
            if entry in self._waiting:
                self._waiting.remove(entry)
            if not entry.leads:
                return
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].called.set()

    def _taken(self, own: "_Entry") -> "list[_Entry]":
        """The entries of the next transaction, the leader's own first."""
        with self._lock:
            others = [entry for entry in self._waiting if entry is not own]
            self._waiting = others[MAX_WRITES - 1 :]
            return [own, *others[: MAX_WRITES - 1]]

    def _one_by_one(self, entries: "list[_Entry]", error: MemosError) -> None:
        """The whole did not go through, for want of room say: what goes through alone does."""
        if len(entries) == 1:
            entries[0].end(error)
            return
        for entry in entries:
            try:
                self._write(entry.run)
                entry.end(entry.error)
            except _Refused as refused:
                entry.end(refused.error)
            except MemosError as failure:
                entry.end(failure)


class _Entry:
    """A write that waits.

    done: its result or error stands; leads: its thread writes for all; called: one of the two has come about
    """

    def __init__(self, work: Callable[[Txn], Any]) -> None:
        self._work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False
        self.leads = False
        self.called = threading.Event()

    def run(self, txn: Txn) -> None:
        before, self.error = txn.writes, None
        try:
            self.result = self._work(txn)
        except lmdb.Error:
            raise  # the transaction's, not the work's
        except Exception as error:
            if txn.writes != before:
                raise _Refused(self, error) from error
            self.error = error

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.done = True
        self.called.set()


class _Refused(Exception):
    """A work raised and left writes behind that have to be undone."""

    def __init__(self, entry: _Entry, error: Exception) -> None:
        super().__init__(str(error))
        self.entry = entry
        self.error = error
