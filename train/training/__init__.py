"""The training loop: batches to updates to scores."""
