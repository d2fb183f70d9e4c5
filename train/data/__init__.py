"""Clips of stores as batches of sequences, in memory or from disk."""
