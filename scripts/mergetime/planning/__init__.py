"""What a study will cost: its jobs as Snakemake sees them, priced by a model and corrected by what was measured."""
