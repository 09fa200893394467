"""Generated programs, run where they can do no harm. Standard library only."""
