"""Checks for a machine with a GPU: what packs them, what runs them."""
