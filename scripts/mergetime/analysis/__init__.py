"""What is measured of a study's pools beside their scores: interference, errors by bias and variance, loss paths."""
