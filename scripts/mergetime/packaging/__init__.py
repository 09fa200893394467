"""A study's results for others, and whether files are still those that were written."""
