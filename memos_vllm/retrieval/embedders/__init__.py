"""Embedders: none, a sentence-transformers model in this process, or a server with OpenAI's `/v1/embeddings`."""

import importlib.util
import os
from pathlib import Path
from urllib.parse import urlsplit

from memos_vllm.errors import StartError
from memos_vllm.retrieval.embedders.base import Embedder, QueryEmbedder

__all__ = ["KEY_ENV", "Embedder", "QueryEmbedder", "check_embedder", "make_embedder"]

KEY_ENV = "MEMOS_EMBEDDER_KEY"
"""API key for an embedding server: an environment variable, for a command line can be read by others."""


def check_embedder(spec: str) -> None:
    """What can be said of `--memory-embedder` before anything is loaded. Raises StartError."""
    if spec == "none" or urlsplit(spec).scheme in ("http", "https"):
        return
    if importlib.util.find_spec("sentence_transformers") is None:
        raise StartError(f"--memory-embedder {spec} needs sentence-transformers: pip install 'memos-vllm[embed]'")
    if spec.startswith(("/", ".", "~")) and not Path(spec).expanduser().is_dir():
        raise StartError(f"--memory-embedder {spec}: there is no such folder")


def make_embedder(spec: str) -> Embedder | None:
    """The embedder that `--memory-embedder` names: `none`, a path or a name, or a URL. Raises StartError."""
    check_embedder(spec)
    if spec == "none":
        return None
    if urlsplit(spec).scheme in ("http", "https"):
        from memos_vllm.retrieval.embedders.remote import RemoteEmbedder

        return RemoteEmbedder(spec, key=os.environ.get(KEY_ENV, ""))
    from memos_vllm.retrieval.embedders.local import LocalEmbedder

    return LocalEmbedder(str(Path(spec).expanduser()) if spec.startswith("~") else spec)
