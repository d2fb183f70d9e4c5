"""The manifest: the CSV that names clips, labels and splits, and all that can be wrong with it."""
