"""Reads of a few rows of the vault, on the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from anyio import to_thread

if TYPE_CHECKING:
    from memos_vllm.vault import Vault

Args = ParamSpec("Args")
Result = TypeVar("Result")


async def looked_up(vault: Vault, read: Callable[Args, Result], *args: Args.args, **options: Args.kwargs) -> Result:
    """What `read` finds in the vault: at once, or in a thread where it would have to wait.

    For reads of some ten microseconds. A thread takes a hundred to be asked and to answer, and on a machine with few
    cores they are the engine's; it also waits for the event loop to pause.
    """
    if vault.is_ready:
        return read(*args, **options)
    return await to_thread.run_sync(lambda: read(*args, **options))
