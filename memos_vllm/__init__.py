"""A memory operating system inside vLLM."""

__version__ = "0.1.0"
