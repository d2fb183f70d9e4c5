"""Labelled face pictures of several sets: read, compared, drawn for batches."""
