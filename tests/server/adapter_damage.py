"""What can happen to an adapter's files behind the server's back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.server.adapter_cases import CONFIG, WEIGHTS, adapter


def lose_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def lose_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def lose_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    replace(folder, WEIGHTS, content[: len(content) // 2])


def corrupt(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1
    replace(folder, WEIGHTS, bytes(content))


def swap_weights(folder: Path) -> None:
    replace(folder, WEIGHTS, adapter(9)[WEIGHTS])


def make_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def raise_rank(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    replace(folder, CONFIG, json.dumps(config | {"r": 64}).encode())


def link_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder.with_name("elsewhere"))


def replace(folder: Path, name: str, content: bytes) -> None:
    (folder / name).unlink()
    (folder / name).write_bytes(content)


DAMAGES = (
    lose_folder,
    lose_weights,
    lose_config,
    truncate,
    corrupt,
    swap_weights,
    make_pickle,
    raise_rank,
    link_weights,
)
