"""Clips over threads and processes; knows no pixel."""
