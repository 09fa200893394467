"""The report of a finished study."""

import json
from pathlib import Path

from tests.workflow.conftest import SMOKE, run_in
from tests.workflow.test_reruns import NOTHING


def test_a_finished_study_has_a_report_and_keeps_it(study: Path) -> None:
    done = run_in(study, "report", *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    folder = study / "results/smoke"
    page = (folder / "report.html").read_text()
    tables = sorted((folder / "tables").glob("*.parquet"))
    assert [table.stem for table in tables if f'id="{table.stem}"' not in page] == []
    read = set(json.loads((folder / "report.json").read_text())["inputs"])
    assert {f"tables/{table.name}" for table in tables} <= read
    assert NOTHING in run_in(study, "report", *SMOKE).stdout
