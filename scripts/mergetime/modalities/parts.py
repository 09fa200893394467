"""The modalities that there are, and their parts, loaded by name.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import importlib
from pathlib import Path
from typing import Any

from mergetime.core.errors import UserError
from mergetime.core.words import nearest

PARTS = ("reading", "learning", "evaluating")
DEFAULT = "causal_lm"
"""The modality of bases and commands that name none."""
_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """All modalities, sorted; none of them is imported for this."""
    return tuple(sorted(file.parent.name for file in _FOLDER.glob("*/learning.py")))


def told(name: str) -> dict[str, str]:
    """A modality as a job is told it: nothing for the default, so that jobs from before there were others stay."""
    return {} if name == DEFAULT else {"modality": name}


def options(name: str) -> list[str]:
    """A modality as an option of a script; none for the default, as in :func:`told`."""
    return [f"--modality={value}" for value in told(name).values()]


def load_part(name: str, part: str) -> Any:
    """The module of a modality's part.

    Raises:
        UserError: for an unknown modality, with the nearest one.
    """
    module = f"{__package__}.{name}.{part}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A library that is missing inside of the part is another error.
        if not module.startswith(str(error.name)):
            raise
        raise UserError(f"modality {name}: there is no such modality{nearest(name, names())}") from error
