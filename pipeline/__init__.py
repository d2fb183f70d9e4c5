"""Stage one: manifest -> decode -> detect -> crop -> embed -> shards."""
