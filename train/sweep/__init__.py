"""The search for settings: what is tried, trials and their storage, what came of them."""
