"""What a change of code reruns: the whole table, some cells of it by hand, and what is added."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import reruns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    return reruns.rows()


def test_the_table_is_up_to_date(rows: dict[str, list[str]]) -> None:
    assert (ROOT / "docs/reruns.md").read_text() == reruns.table(rows), "run `make reruns`, and read what has changed"


def test_every_script_that_a_rule_runs_is_in_the_table(rows: dict[str, list[str]]) -> None:
    rules = "".join(file.read_text() for file in (ROOT / "rules").rglob("*.smk"))
    run = set(re.findall(r"python (scripts/\w+\.py)", rules))
    # They write no artifact: a plan and a check of files, for people.
    assert run - set(rows) == {"scripts/plan_study.py", "scripts/verify_artifacts.py"}


@pytest.mark.parametrize(
    ("file", "runs"),
    [
        (
            "merging/methods/ties.py",
            {
                "merge (breadcrumbs_ties, dare, dare_ties, della, della_linear, iso_c, knots, subspace_boosting, "
                "subspace_boosting_ties, ties, tsv_merge)"
            },
        ),
        ("merging/methods/with_data.py", {"merge (fisher, localize_and_stitch_trained, regmean)"}),
        ("data/formats/aya.py", {"prepare_domain (aya)"}),
        ("data/formats/beavertails.py", {"prepare_domain (beavertails, beavertails_contrast)"}),
        ("data/preparation.py", {"prepare_domain"}),
        ("evaluation/scoring.py", {"evaluate", "select_soup"}),
        # Measuring asks the same part for what tells two models apart.
        (
            "modalities/causal_lm/harness.py",
            {"evaluate", "select_soup", "measure_bias_variance", "measure_connectivity"},
        ),
        ("evaluation/judging.py", {"judge_responses", "select_soup"}),
        ("training/trainer.py", {"train_expert"}),
        ("measuring/data_statistics.py", {"measure_expert"}),
        ("measuring/interference.py", {"measure_interference"}),
    ],
)
def test_cells_by_hand(rows: dict[str, list[str]], file: str, runs: set[str]) -> None:
    assert set(rows[f"scripts/mergetime/{file}"]) == runs


@pytest.mark.parametrize(
    ("task", "runs"),
    [
        ("demo/demo_requests.yaml", {"evaluate (test of demo tasks)"}),
        ("paper/harmbench_standard.yaml", {"evaluate (test of paper tasks)"}),
        (
            "demo/demo_locales_validation.yaml",
            {"evaluate (validation of demo tasks)", "select_soup (validation of demo tasks)"},
        ),
    ],
)
def test_a_task_is_run_again_in_its_own_group_alone(rows: dict[str, list[str]], task: str, runs: set[str]) -> None:
    assert set(rows[f"config/tasks/{task}"]) == runs


def test_a_change_of_the_config_reruns_nothing_but_what_its_values_change(rows: dict[str, list[str]]) -> None:
    assert not [file for file in rows if file.startswith("scripts/mergetime/config/")]


def test_a_table_of_no_other_stage(rows: dict[str, list[str]]) -> None:
    tables = [file for file in rows if re.search(r"/tables/(?!__init__)\w+\.py$", file)]
    assert tables
    for file in tables:
        assert {cell.split(" ")[0] for cell in rows[file]} <= {"make_table"}, file


METHOD = """
from mergetime.merging.method import MergeMethod

METHODS = [MergeMethod("first_alone", "test", lambda stack, context: stack[0])]
"""
FORMAT = """
from mergetime.data.format import Format, chat

FORMAT = Format(("q", "a"), lambda row: chat(row["q"], row["a"]))
"""
PAPER = "from mergetime.papers import Paper\n\nPAPER = Paper(id='other')\n"
CLAIM = "# nothing but a comment\n"
PART = '"""A part of a modality."""\n'


@pytest.mark.parametrize(
    ("added", "text", "new"),
    [
        ("scripts/mergetime/merging/methods/first_alone.py", METHOD, {"merge first_alone"}),
        ("scripts/mergetime/data/formats/questions.py", FORMAT, {"prepare_domain questions"}),
        ("scripts/mergetime/papers/duration/tables/another.py", "def table(inputs): ...\n", set()),
        ("scripts/mergetime/modalities/other/reading.py", PART, set()),
        ("scripts/mergetime/modalities/other/learning.py", PART, set()),
        ("scripts/mergetime/papers/other/paper.py", PAPER, set()),
        ("config/tasks/demo/demo_another.yaml", "task: demo_another\ndoc_to_text: !function other.f\n", set()),
        ("config/papers/other/claims.yaml", CLAIM, set()),
    ],
)
def test_what_is_added_reruns_nothing(tmp_path: Path, added: str, text: str, new: set[str]) -> None:
    for name in ("scripts", "config", "tests/unit/reruns.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    before = _digests(tmp_path)
    (tmp_path / added).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / added).write_text(text)
    after = _digests(tmp_path)
    assert {name for name in after if name not in before} == new
    assert {name: after[name] for name in before} == before


def _digests(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.reruns", "--digests"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}/scripts:{folder}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    content: dict[str, str] = json.loads(done.stdout)
    return content
