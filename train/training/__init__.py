"""Training: batches to updates; val is scored, and chooses the epoch that each run keeps."""
