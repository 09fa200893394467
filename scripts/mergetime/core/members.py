"""What a config may name because there is a folder of it: nothing has to be listed a second time."""

from pathlib import Path


def members(package: str) -> list[str]:
    """The packages inside a package of mergetime, by their folders; nothing is imported."""
    return sorted(file.parent.name for file in (Path(__file__).parents[1] / package).glob("*/__init__.py"))
