"""The grid of steps that multiples of T* fall on.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

QUARTERS = 4
"""Validation runs every 4 E steps and experts are saved every E, so that each quarter of T* is a saved step."""
