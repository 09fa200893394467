"""What the documentation shows of configs can be used as it is."""

import re
from pathlib import Path

import pytest
import yaml

from mergetime.config.reading import parse
from mergetime.workflow.grid import Grid

ROOT = Path(__file__).parents[2]
SECTIONS = (ROOT / "docs/studies.md").read_text().split("\n## ")[1:]
"""All but the last, on what runs again, show a piece of a config."""
EXAMPLES = {
    section.partition("\n")[0]: re.findall(r"```yaml\n(.*?)```", section, re.DOTALL) for section in SECTIONS[:-1]
}


@pytest.mark.parametrize("section", EXAMPLES)
def test_an_example_can_be_laid_over_the_demo(section: str) -> None:
    demo = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    (example,) = EXAMPLES[section]
    assert Grid.of(parse(demo | yaml.safe_load(example), "docs/studies.md")).pools
