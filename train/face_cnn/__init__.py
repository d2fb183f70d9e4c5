"""Training and scoring of the face CNN, behind ``fit-face``."""
