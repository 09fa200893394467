"""A package made from a finished study is enough to rebuild its tables."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from mergetime.claims import claim, judge
from mergetime.config import reading
from mergetime.core import tables
from mergetime.papers import comparison
from mergetime.results import columns as tidy
from mergetime.results.costs import costs
from tests.compare_claims import CLAIMS, contradictions
from tests.unit.test_publishing import curve, curves, frame, merged, row, samples
from tests.workflow.conftest import ROOT, SMOKE, run_in
from tests.workflow.test_reruns import planned

PAPER = ["--configfile", "config/paper.yaml"]


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


def paper_package(folder: Path) -> Path:
    """The package of results that have the shape of the paper study's: its bases, methods, durations and domains."""
    study = reading.load(ROOT / "config/paper.yaml")
    durations, domains = ["0.5x", "1x", "5x"], list(study.domains)
    rows, losses = [], []
    for place, base in enumerate(study.bases):
        rows += [row("base", domain, 0.1, base=base) for domain in domains]
        rows += [
            row("expert", domain, 0.7, base=base, expert=domain, duration="1x", seed=1, study=study.study)
            for domain in domains
        ]
        for name, method in study.methods.items():
            scores = {duration: dict.fromkeys(domains, (1 + place + at) / 20) for at, duration in enumerate(durations)}
            rows += merged(
                scores, method=name, algorithm=method.method, space=method.space, pool="same_duration", base=base
            )
        losses += [curve(domain, base=base, study=study.study) for domain in domains]
    scored = frame(rows).assign(study=study.study).astype({"seed": "Int64"})
    files = {
        "results": (scored, tidy.RESULTS),
        "samples": (samples(scored).reindex(columns=list(tidy.SAMPLES)).astype({"seed": "Int64"}), tidy.SAMPLES),
        "curves": (curves(*losses), tidy.CURVES),
        "costs": (costs(study, folder), tidy.COSTS),
    }
    for name, (rows_of, columns) in files.items():
        tables.write(rows_of, columns, folder / f"{name}.parquet")
    (folder / "study.json").write_text(study.model_dump_json())
    packed = folder.parent / "package"
    made: list[str | Path] = [sys.executable, ROOT / "scripts/make_package.py", "--study", folder, "--out", packed]
    subprocess.run(made, check=True)
    return packed


def test_table_5_of_the_paper_is_made_where_its_package_is_all_there_is(clone: Path, tmp_path: Path) -> None:
    packed = paper_package(tmp_path / "study")
    shutil.rmtree(tmp_path / "study")
    says = re.search(r"```console\n(.*?)```", (packed / "README.md").read_text(), re.DOTALL)
    assert says is not None
    copying = [line for line in says[1].splitlines() if not line.startswith("snakemake")]
    subprocess.run(["bash", "-ec", "\n".join(copying).replace("PACKAGE", str(packed))], cwd=clone, check=True)
    dry = run_in(clone, "-n", "table_5", *PAPER)
    assert dry.returncode == 0, dry.stdout[-3000:]
    assert dict(re.findall(r"^(\w+) +(\d+)$", dry.stdout, re.M)) == {"make_table": "1", "table_5": "1", "total": "2"}
    done = run_in(clone, "table_5", *PAPER)
    assert done.returncode == 0, done.stdout[-3000:]
    cells = pd.read_parquet(clone / "results/duration/tables/table_5.parquet")
    assert cells["panel"].unique().tolist() == ["qwen3.5-4b"]
    best = cells[(cells["row"] == "Best TIES (delta)") & (cells["column"] == "Average")]
    assert best["value"].tolist() == [25.0]


def test_published_numbers_and_claims_are_judged_where_nothing_matches(study: Path) -> None:
    done = run_in(study, "compare_published", "audit_published", "claims", *SMOKE)
    assert done.returncode == 0, done.stdout[-3000:]
    folder = study / "results/smoke"
    compared = tables.read(folder / "published/comparison.parquet", comparison.COLUMNS)
    assert set(compared["verdict"]) == {"not_comparable"}
    judged = tables.read(folder / "claims.parquet", judge.COLUMNS)
    assert {"not_testable"} < set(judged["verdict"]) <= set(judge.VERDICTS)
    assert not list(contradictions(folder, claim.load(CLAIMS)))
    assert (folder / "claims.md").is_file()
    assert (folder / "published/audit.md").is_file()
