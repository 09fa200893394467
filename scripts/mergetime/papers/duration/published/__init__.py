"""What the paper printed: its tables as data, held against themselves and against a study's own results."""
