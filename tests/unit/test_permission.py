"""Generated code runs unprotected only where the config and the environment of the command both say so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergetime.core.errors import UserError
from mergetime.sandbox.permission import check_unprotected

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("sandbox", "environment"),
    [
        ("required", {}),
        ("required", {"MERGETIME_SANDBOX": "none"}),
        ("none", {"MERGETIME_SANDBOX": "none"}),
    ],
)
def test_what_both_agree_to_is_done(sandbox: str, environment: dict[str, str]) -> None:
    check_unprotected(sandbox, "c.yaml", environment)


@pytest.mark.parametrize("environment", [{}, {"MERGETIME_SANDBOX": ""}, {"MERGETIME_SANDBOX": "required"}])
def test_a_config_alone_does_not_switch_off_the_protection(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^c\.yaml: evaluation\.sandbox: none lets code that models write do whatever"):
        check_unprotected("none", "c.yaml", environment)


@pytest.mark.parametrize(
    "script", ["evaluate.py --subjects []", "select_soup.py --space delta --experts {} --tried t --out o"]
)
def test_scripts_called_by_hand_ask_the_same(script: str, tmp_path: Path) -> None:
    suite = json.dumps({"split": "test", "evaluation": {"sandbox": "none"}, "cache": str(tmp_path)})
    name, *options = script.split()
    told = ["--base", "nowhere", "--suite", suite, *options]
    environment = {key: value for key, value in os.environ.items() if key != "MERGETIME_SANDBOX"}
    for extra, said in (({}, "evaluation.sandbox: none lets"), ({"MERGETIME_SANDBOX": "none"}, "nothing to evaluate")):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / name, *told],
            cwd=tmp_path,
            env={**environment, **extra, "PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert done.stderr.startswith(f"error: --suite: {said}")
