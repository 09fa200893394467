"""The type of a chat."""

Messages = list[dict[str, str]]
"""Turns with ``role`` (user, assistant) and ``content``; the last one is the response."""
