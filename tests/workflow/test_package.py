"""A package made from a finished study is enough to rebuild its tables."""

import shutil
import subprocess
import sys
from pathlib import Path

from mergetime import results
from mergetime.claims import judge
from mergetime.published import compare
from tests.workflow.conftest import SMOKE, run_in
from tests.workflow.test_reruns import planned


def test_a_table_is_planned_and_made_from_the_package_alone(study: Path, clone: Path) -> None:
    done = run_in(study, "package", *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    packed = study / "results/smoke/package"
    verified = subprocess.run([sys.executable, "scripts/verify_package.py", packed], cwd=study, check=False)
    assert verified.returncode == 0
    folder = clone / "results/smoke"
    folder.mkdir(parents=True)
    for name in ("results.parquet", "samples.parquet"):
        shutil.copy(packed / name, folder)
    assert planned(clone, "table_3") == {"make_table": 1, "table_3": 1, "total": 2}
    # With the study's description, copied first, nothing else is planned either.
    shutil.copy(packed / "study.json", folder)
    for file in packed.glob("*.parquet"):
        shutil.copy(file, folder)
    # As `cp -r` copies: with the times of the copying, not the older ones of the files.
    shutil.copytree(packed / "analysis", folder / "analysis", copy_function=shutil.copy)
    own = ["--configfile", "results/smoke/study.json"]
    assert planned(clone, "claims") == {"judge_claims": 1, "claims": 1, "total": 2}
    assert run_in(clone, "table_3", *own).returncode == 0
    made = (folder / "tables/table_3.md").read_bytes()
    assert made == (study / "results/smoke/tables/table_3.md").read_bytes()


def test_published_numbers_and_claims_are_judged_where_nothing_matches(study: Path) -> None:
    done = run_in(study, "compare_published", "audit_published", "claims", *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    folder = study / "results/smoke"
    compared = results.read(folder / "published/comparison.parquet", compare.COLUMNS)
    assert set(compared["verdict"]) == {"not_comparable"}
    judged = results.read(folder / "claims.parquet", judge.COLUMNS)
    assert {"not_testable"} < set(judged["verdict"]) <= set(judge.VERDICTS)
    assert (folder / "claims.md").is_file()
    assert (folder / "published/audit.md").is_file()
