"""One module per figure, and what they share."""
