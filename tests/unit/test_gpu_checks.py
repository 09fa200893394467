"""The checks for a GPU, tried without one: their table, their limits, and what is packed for them."""

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from mergetime.core.errors import UserError
from tests.gpu import pack
from tests.gpu.run import made, run
from tests.gpu.table import CHECKS, Check

ROOT = Path(__file__).parents[2]
BUNDLE = yaml.safe_load((ROOT / "tests/gpu/bundle.yaml").read_text())
THERE = {"torch", "numpy", "pandas", "scipy", "matplotlib"}
"""Packages of the machine's own."""
NOT_CHECKED = {"plotly", "nltk", "langdetect"}
"""Of reports in HTML, and of IFEval."""


def test_a_check_says_its_figures_in_a_table_and_in_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.run", "--shape", "tiny", "--only", "kernels", "--stretch", "10"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--limit-s", "600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "out/figures.json").read_text())
    assert {"torch", "transformers"} <= written["versions"].keys()
    (check,) = written["checks"]
    figures = {figure["name"]: figure for figure in check["figures"]}
    assert check["result"] == "passed"
    assert figures["PyTorch, in chunks"]["value"] > 0
    assert "| kernels | passed | what is used |" in done.stdout
    assert done.stdout.strip() in (tmp_path / "out/figures.md").read_text()


HANGING = """
import subprocess, time
from tests.gpu.checking import Figure
def check(setting):
    child = subprocess.Popen(["sleep", "600"])
    yield Figure("child", child.pid)
    time.sleep(600)
"""
BROKEN = """
from tests.gpu.checking import Figure, Skipped
def check(setting, why):
    yield Figure("half", 1.0)
    raise {"error": ValueError("no such kernel"), "skip": Skipped("no GPU")}[why]
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging_check.py").write_text(HANGING)
    (tmp_path / "broken_check.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("modules")
def test_a_check_that_hangs_is_ended_with_its_children_and_the_others_go_on(tmp_path: Path) -> None:
    checks = [
        Check("hanging", "hanging_check", 10, 1),
        Check("broken", "broken_check", 60, 1, {"why": "error"}),
        Check("skipping", "broken_check", 60, 1, {"why": "skip"}),
        Check("long", "broken_check", 600, 599),
    ]
    hanging, broken, skipping, long = run(checks, "tiny", tmp_path, 300)
    assert hanging.result == "stopped"
    assert 10 <= hanging.seconds < 20
    # What it said before is kept, and what it started is gone.
    assert not Path(f"/proc/{hanging.figures[0]['value']}").exists()
    assert (broken.result, broken.figures[0]["name"]) == ("failed", "half")
    assert broken.note.startswith("ValueError: no such kernel; ")
    assert (skipping.result, skipping.note) == ("skipped", "no GPU")
    assert (long.result, long.seconds) == ("skipped", 0.0)
    assert "give --only long" in long.note


def test_the_limit_of_all_checks_holds_for_each(tmp_path: Path) -> None:
    # So short that it ends before anything is imported.
    assert made(CHECKS[0], "tiny", tmp_path, 0.1).result == "stopped"


def test_what_checks_and_scripts_import_is_packed() -> None:
    files = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests/gpu").rglob("*.py")]
    files += [ROOT / "tests/benchmarks/train/run.py", ROOT / "tests/benchmarks/merge/inputs.py"]
    chosen = pack.requirements(pack.LOCK.read_text(), (name for names in BUNDLE["left_out"] for name in names))
    packed = {line.partition("==")[0] for line in (*chosen.splitlines(), *BUNDLE["also"])}
    distributions = packages_distributions()
    for module in sorted({name for file in files for name in imported(file)}):
        for distribution in distributions.get(module, []):
            known = packed | THERE | NOT_CHECKED
            assert distribution.lower().replace("_", "-") in known, f"{module} is left out by bundle.yaml"


def imported(file: Path) -> set[str]:
    """The packages that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_a_requirement_keeps_its_hashes_and_one_that_is_unknown_is_refused() -> None:
    lock = "a==1 \\\n    --hash=sha256:11 \\\n    --hash=sha256:12\nb==2 \\\n    --hash=sha256:21\n"
    assert pack.requirements(lock, ["b"]) == lock.partition("b==")[0]
    with pytest.raises(UserError, match=r"left_out: c is not in requirements\.lock"):
        pack.requirements(lock, ["c"])


def test_what_is_kept_of_a_removed_folder_stays_alone(tmp_path: Path) -> None:
    for name in ("tasks/ifeval/utils.py", "tasks/gsm8k/a.yaml", "tasks/manager.py", "other/tests/a.py", "other/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pack.trim(tmp_path, ["tasks", "**/tests"], ["tasks/*.py", "tasks/ifeval"])
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"tasks/ifeval/utils.py", "tasks/manager.py", "other/b.py"}
