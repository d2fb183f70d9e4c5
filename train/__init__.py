"""Stage two: shards -> dataset -> heads -> metrics -> report. Never opens a video."""
