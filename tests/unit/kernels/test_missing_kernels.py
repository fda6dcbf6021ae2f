"""Without the C++ kernels: Torch does the work, and one line says why."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "memos_kernels._cpu":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
import torch
from memos_kernels import cpu
from memos_kernels.capture import capture
from memos_kernels.layout import CpuVecLayout
from memos_kernels.splice import splice
from tests.unit.kernels.cases import Case

case = Case(length=40)
caches = case.poisoned()
k, v = case.rows()
for _ in range(2):
    splice(caches, CpuVecLayout(64), case.table, 32, 0, k, v, 0, case.rope)
got = capture(caches, CpuVecLayout(64), case.table, 32, 0, 40)
print(cpu.available(), torch.equal(got[0], k), torch.equal(got[1], v))
"""


def test_torch_does_the_work_and_says_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
    assert done.stderr.count("spliced by Torch, not by the faster C++ kernels") == 1
    assert "g++, python3-dev" in done.stderr
