"""What fit leaves on disk: run folders, and what is in them."""
