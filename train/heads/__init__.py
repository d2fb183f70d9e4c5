"""The recurrent heads of the paper, one run or several side by side."""
