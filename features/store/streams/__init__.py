"""Streams beside the shards: for each shard a file with a row for each of its frames or faces."""
