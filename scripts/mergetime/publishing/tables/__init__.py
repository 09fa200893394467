"""One module a table, or a family of tables."""
