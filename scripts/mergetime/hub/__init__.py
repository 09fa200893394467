"""The hub: its clients, what a repository holds, the commits that a config pins, and a hub in a folder."""
