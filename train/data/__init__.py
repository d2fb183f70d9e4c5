"""What heads learn from: stores, the splits of their clips, features as sequences and batches."""
