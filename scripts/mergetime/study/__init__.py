"""What a study consists of: durations, pools, subjects, and the measurements of its pools.

Imported while Snakemake parses the workflow: nothing heavy is imported here."""
