"""Claims: one process captures a cube, and a dead one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from memos_vllm.server.claims import claimed

HOLD = """
import sys, time
from pathlib import Path
from memos_vllm.server.claims import claimed
with claimed(Path(sys.argv[1]), "k") as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_one_claim_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path, "k") as first, claimed(tmp_path, "k") as second, claimed(tmp_path, "other") as third:
        assert (first, second, third) == (True, False, True)
    with claimed(tmp_path, "k") as again:
        assert again
    assert list((tmp_path / "claims").iterdir()) == []


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with claimed(tmp_path, "k") as mine:
            assert not mine
        holder.kill()
    with claimed(tmp_path, "k") as mine:
        assert mine
