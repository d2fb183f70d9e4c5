"""The store: its format, shards, index and bundles; the only door to HDF5."""

from features.store.reader import open_store
from features.store.writer import write_store

__all__ = ["open_store", "write_store"]
