"""Frozen networks: their weights, and how they run on a CPU or a GPU."""
