"""One module per table, or per family of tables."""
