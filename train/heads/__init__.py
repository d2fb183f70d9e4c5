"""The networks of the paper, one run or several side by side."""
