"""The tidy files of a study: their columns, and how they are collected."""
