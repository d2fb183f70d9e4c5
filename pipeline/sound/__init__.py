"""Features of a clip's sound at each tick: log-mel energies, energy and pitch, and what they do."""
