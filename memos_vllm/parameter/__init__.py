"""Parameter memory: adapters made out of memories, merged, read back as text."""
