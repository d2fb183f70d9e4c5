"""The search for settings: trials, their storage, and what they tell."""
