"""From frames and faces to features: crops and the two CNNs."""
