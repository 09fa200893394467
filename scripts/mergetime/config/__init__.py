"""A study's config: one pydantic model per section, no unknown keys; light imports only."""
