"""Which actions stand in the audit log.

Every change of a cube, a snapshot or the registry does always: the vault writes the entry in the transaction of the
change. Accesses that change nothing are recorded as far as the policy goes.
"""

from collections.abc import Mapping
from typing import Literal

Access = Literal["refuse", "read", "search", "prompt"]
"""`refuse`: a caller was told that they may not; the others: a cube of somebody else was shown to them by its id, found
by their search, or put into their prompt by its id.
"""

AuditPolicy = Literal["changes", "refusals", "access"]

RECORDED: Mapping[AuditPolicy, frozenset[Access]] = {
    "changes": frozenset(),
    "refusals": frozenset(("refuse",)),
    "access": frozenset(("refuse", "read", "search", "prompt")),
}
