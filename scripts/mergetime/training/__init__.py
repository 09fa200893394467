"""Training an expert once, and keeping it at exactly the durations that the study lists."""
