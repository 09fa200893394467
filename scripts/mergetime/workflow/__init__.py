"""What the rules ask: inputs, options and resources of jobs, as typed functions of the study and wildcards."""
