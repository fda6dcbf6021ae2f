"""Log records of ours, whoever handles them; in a process of their own, for the record factory is everybody's."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from memos_vllm.governance.logs import redact_logs
redact_logs(); redact_logs()
logging.basicConfig(format="%(name)s %(message)s")
ours, other = logging.getLogger("memos_vllm.server.chat"), logging.getLogger("elsewhere")
ours.warning("mail of %s: %d", "ana@example.org", 3)
ours.warning("100%% of %(n)s", {"n": 5})
logging.getLogger("memos_vllm").warning("password: hunter22")
logging.getLogger("memos_vllm_other").warning("ana@example.org")
other.warning("mail of %s", "ana@example.org")
try:
    raise ValueError("card 4111 1111 1111 1111")
except ValueError:
    ours.exception("trouble with +351 912 345 678")
"""


def test_our_records_hold_nothing_sensitive() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = result.stderr.splitlines()
    assert lines[:6] == [
        "memos_vllm.server.chat mail of [email]: 3",
        "memos_vllm.server.chat 100% of 5",
        "memos_vllm password: [secret]",
        "memos_vllm_other ana@example.org",
        "elsewhere mail of ana@example.org",
        "memos_vllm.server.chat trouble with [phone]",
    ]
    assert lines[-1] == "ValueError: card [payment card]" and "Traceback" in lines[6]
    assert "4111 1111" not in lines[-1]
