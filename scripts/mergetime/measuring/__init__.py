"""What is measured of experts and pools: statistics on data, interference, probabilities, losses along paths."""
