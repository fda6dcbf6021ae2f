"""The Python client of the memory API.

    from memos_vllm.client import MemosClient

    with MemosClient("http://localhost:8000", api_key="sk-…") as memos:
        memos.add("My favourite tea is oolong.")
        print(memos.search("tea")[0].memory)

`AsyncMemosClient` has the same methods to await. Importing this loads neither torch nor vLLM.
"""

from memos_vllm.client.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ConnectionFailed,
    FullError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    TooLargeError,
    UnavailableError,
)
from memos_vllm.client.http import AsyncMemosClient, MemosClient
from memos_vllm.client.models import (
    Adapter,
    AdapterRemoved,
    AdapterVersion,
    Ancestor,
    Change,
    Choice,
    Deleted,
    Forgotten,
    Grant,
    Health,
    Learn,
    LeftOut,
    LogEntry,
    LogPage,
    Memory,
    Plan,
    Proposal,
    Restored,
    Snapshot,
    Training,
    Usage,
    Verification,
    Version,
)

__all__ = [
    "Adapter",
    "AdapterRemoved",
    "AdapterVersion",
    "Ancestor",
    "ApiError",
    "AsyncMemosClient",
    "AuthenticationError",
    "BadRequestError",
    "Change",
    "Choice",
    "ConflictError",
    "ConnectionFailed",
    "Deleted",
    "Forgotten",
    "FullError",
    "Grant",
    "Health",
    "Learn",
    "LeftOut",
    "LogEntry",
    "LogPage",
    "Memory",
    "MemosClient",
    "NotFoundError",
    "PermissionDeniedError",
    "Plan",
    "Proposal",
    "RateLimitError",
    "Restored",
    "Snapshot",
    "TooLargeError",
    "Training",
    "UnavailableError",
    "Usage",
    "Verification",
    "Version",
]
