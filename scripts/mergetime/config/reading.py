"""A study from YAML, with errors in one line, and the schema of configs.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import json
from pathlib import Path
from typing import Any

from mergetime.config.study import Study
from mergetime.core import yaml_text
from mergetime.core.sections import validated


def parse(data: Any, source: str) -> Study:
    """A study from loaded YAML.

    Raises:
        UserError: in one line that names ``source``, the key, and the nearest valid one.
    """
    return validated(Study, data, source)


def load(path: Path) -> Study:
    """The study in a YAML file; errors as :func:`parse` gives them."""
    return parse(yaml_text.read(path), str(path))


def schema() -> str:
    """The JSON schema of a config, for editors; config/schema.json holds it."""
    return json.dumps(Study.model_json_schema(), indent=2) + "\n"
