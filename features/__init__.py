"""What frozen CNNs see in a clip, and how it lies on disk: networks, shards, stores, bundles."""
