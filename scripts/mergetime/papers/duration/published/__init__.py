"""What the paper printed: its tables as data, checked against themselves and against a study's own results."""
