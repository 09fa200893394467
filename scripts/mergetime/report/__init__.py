"""One page with everything that a study has."""
