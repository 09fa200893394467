"""The scripts that measure pools on examples and collect what was measured, on the demo's base."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mergetime.analysis import barriers, bias_variance, collecting
from mergetime.analysis.collecting import ANALYSES, OF, POOL
from mergetime.config import reading
from mergetime.config.study import Study
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.measuring.columns import ALL, PATHS, PROBABILITIES
from mergetime.study import layout
from mergetime.study.layout import Layout
from mergetime.study.measurements import domains_of, jobs
from tests.unit.test_analysis_connectivity import BASE, write_adapter

ROOT = Path(__file__).parents[2]
CHATS = [
    chat("What is 2 and 3?", "It is 5."),
    chat("Describe the sea.", "The sea is wide."),
    chat("What is 4 less 1?", "3"),
]


def command(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, str(ROOT / "scripts" / script), *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, a merged model and the examples of two domains."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("a", "b", "merged")):
        write_adapter(folder / name, seed)
    for domain in ("math", "sea"):
        pq.write_table(
            pa.Table.from_pylist([{"messages": messages} for messages in CHATS]), folder / f"{domain}.parquet"
        )
    return folder


def shared(folder: Path, out: Path) -> list[object]:
    experts = [word for name in "ab" for word in ("--expert", f"{name}={folder / name}")]
    data = [word for domain in ("math", "sea") for word in ("--data", f"{domain}={folder / domain}.parquet")]
    return ["--base", BASE, *experts, *data, "--batch-size", 2, "--examples", 2, "--out", out]


def test_probabilities_are_measured_and_recorded(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "seed-1.parquet"
    ended = command("measure_bias_variance.py", *shared(inputs, out), "--merged", f"m={inputs / 'merged'}")
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"mean probability of the reference response: expert 0\.\d+, merged 0\.\d+\n", ended.stdout)
    found = tables.read(out, PROBABILITIES)
    assert len(found) == 3 * 2 * 2
    assert found.groupby(["kind", "name"]).size().to_dict() == {
        ("expert", "a"): 4,
        ("expert", "b"): 4,
        ("merged", "m"): 4,
    }
    assert ((found["probability"] > 0) & (found["probability"] <= 1)).all()
    # Both domains hold the same chats; other subjects give other probabilities.
    by_domain = found.pivot(index=["kind", "name", "example"], columns="domain", values="probability")
    assert (by_domain["math"] == by_domain["sea"]).all()
    assert found["probability"].nunique() == 3 * 2
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["stage"] == "measure_bias_variance"
    assert record["facts"]["examples"] == {"math": 2, "sea": 2}
    assert {"base", "expert a", "config of b", "data of sea"} <= set(record["inputs"])
    merged = {name for name in record["inputs"] if name.startswith("merged m ")}
    assert merged == {"merged m adapter_config.json", "merged m adapter_model.safetensors"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["seed-1.json", "seed-1.parquet"]


def test_paths_are_measured_and_recorded(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "seed-1.parquet"
    path = ["--domain", "a=math", "--domain", "b=sea", "--alphas", 0, 0.5, 1, "--spaces", "delta", "adapter"]
    ended = command("measure_connectivity.py", *shared(inputs, out), *path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "1 pairs in 2 spaces at 3 points each: 18 losses\n"
    assert len(tables.read(out, PATHS)) == 18
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["config"]["alphas"] == [0.0, 0.5, 1.0]
    assert record["config"]["domains"] == {"a": "math", "b": "sea"}


def refusal(script: str, *words: object) -> str:
    ended = command(script, *words)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr.splitlines()[-1]


def test_the_commands_fail_in_one_line(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.parquet"
    twice = ["--expert", f"a={inputs / 'b'}"]
    measure = "measure_bias_variance.py"
    assert refusal(measure, *shared(inputs, out), *twice) == "error: --expert a: is given twice"
    assert "name a file that ends in .parquet" in refusal(measure, *shared(inputs, tmp_path / "out"))
    write_adapter(tmp_path / "still", 1)
    weights = tmp_path / "still" / "adapter_model.safetensors"
    still = shutil.copytree(tmp_path / "still", tmp_path / "zero")
    from safetensors.torch import load_file, save_file

    save_file({key: 0 * tensor for key, tensor in load_file(weights).items()}, still / weights.name)
    assert refusal(measure, *shared(inputs, out), "--merged", f"m={still}").startswith(
        "error: m: its logits are those of the base"
    )
    path = ["--domain", "a=math", "--domain", "b=sea", "--alphas", 0, 0.5, "--spaces", "delta"]
    assert "give a rising list from 0 to 1" in refusal("measure_connectivity.py", *shared(inputs, out), *path)
    assert not out.exists()


@pytest.fixture
def study() -> Study:
    return reading.load(ROOT / "config" / "smoke.yaml")


def test_measurements_are_those_of_pools_that_have_pairs(study: Study) -> None:
    pools = [job.pool.id for job in jobs(study, "mode_connectivity")]
    assert pools == [job.pool.id for job in jobs(study, "interference")]
    assert len(pools) == 5
    imported = next(job.pool for job in jobs(study, "bias_variance") if job.pool.id == "with_imported")
    assert domains_of(study, imported) == {"safety": "safety", "polite": "safety"}
    polite = study.experts.imported["polite"].model_copy(update={"domain": None})
    without = study.model_copy(
        update={"methods": {}, "experts": study.experts.model_copy(update={"imported": {"polite": polite}})}
    )
    assert "with_imported" not in [job.pool.id for job in jobs(without, "mode_connectivity")]
    assert "with_imported" in [job.pool.id for job in jobs(without, "bias_variance")]
    assert set(layout.ANALYSES) == set(ANALYSES)


def test_a_study_without_a_pool_to_measure_is_one_line(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="study smoke: bias_variance has no pool to measure: it takes pools of two"):
        collecting.tables_of(study.model_copy(update={"pools": {}}), tmp_path, "bias_variance")


def test_bias_and_variance_are_collected_over_pools_and_seeds(study: Study, tmp_path: Path) -> None:
    study = study.model_copy(update={"seeds": [1, 2]})
    for number, job in enumerate(jobs(study, "bias_variance")):
        rows = [
            (kind, name, "safety", example, 3, 0.5, 1 / (2 + number + len(name) + example))
            for kind, name in [*(("expert", name) for name in job.pool.members), ("merged", "ties")]
            for example in range(4)
        ]
        frame = pd.DataFrame(rows, columns=list(PROBABILITIES))
        tables.write(frame, PROBABILITIES, Path(job.file(Layout(str(tmp_path)))))
    (tmp_path / "study.json").write_text(study.model_dump_json())
    ended = command(
        "collect_analysis.py", "--analysis", "bias_variance", "--study", tmp_path / "study.json", "--out", tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = tables.read(tmp_path / "analysis/bias_variance.parquet", OF | bias_variance.COLUMNS | POOL)
    assert set(found["pool_family"]) == set(study.pools)
    seeds = found[["over", "seed"]].drop_duplicates().astype(object).fillna("none")
    assert {tuple(own) for own in seeds.to_numpy()} == {
        *((over, seed) for over in ("experts", "examples") for seed in (1, 2)),
        ("seeds", "none"),
    }
    assert found.groupby("pool")["multiple"].first().to_dict()["same_duration_0.5x"] == 0.5
    assert found[found["over"] == "seeds"]["pool"].nunique() == 5
    assert set(found["experts"]) == {2}
    # A term grows by the same from duration to duration of a pool, whichever of them it stands beside.
    grown = found["pool"].str.startswith("same_duration")
    assert found["slope"].notna().equals(grown)
    own = found[grown & (found["domain"] == "safety") & (found["term"] == "merged_error")]
    for _, grown_in in own.groupby(["base", "seed", "over"], dropna=False):
        line = np.polyfit(np.log2(grown_in["multiple"]), grown_in["value"], 1)[0]
        assert grown_in["slope"].to_numpy() == pytest.approx([line] * len(grown_in))
        assert (grown_in["slope_stderr"] > 0).all()


def test_paths_and_barriers_are_collected(study: Study, tmp_path: Path) -> None:
    for job in jobs(study, "mode_connectivity"):
        rows = [
            ("delta", "a", "b", domain, alpha, 1.0 + alpha * (1 - alpha))
            for domain in ("safety", ALL)
            for alpha in (0.0, 0.5, 1.0)
        ]
        tables.write(pd.DataFrame(rows, columns=list(PATHS)), PATHS, Path(job.file(Layout(str(tmp_path)))))
    found = collecting.tables_of(study, tmp_path, "mode_connectivity")
    assert set(found) == {"mode_connectivity.parquet", "barriers.parquet"}
    for name, (frame, columns) in found.items():
        tables.write(frame, columns, tmp_path / name)
    paths = tables.read(tmp_path / "mode_connectivity.parquet", OF | PATHS | POOL)
    assert len(paths) == 5 * 6
    found_barriers = tables.read(tmp_path / "barriers.parquet", OF | barriers.COLUMNS | POOL)
    assert set(found_barriers["recipe"].dropna()) <= {"default"}
    assert len(found_barriers) == 5 * 2 * 2
    assert found_barriers["barrier"].tolist() == [0.25] * len(found_barriers)
    assert found_barriers["alpha"].isna().sum() == 5 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{alphas: [0.5, 1.0]}", r"mode_connectivity: alphas \[0\.5, 1\.0\] is not a rising list from 0 to 1"),
        ("{alphas: [0, 1, 0.5]}", "is not a rising list from 0 to 1"),
        ("{alphas: []}", r"alphas \[\] is not a rising list from 0 to 1"),
        ("{spaces: []}", "mode_connectivity.spaces: List should have at least 1 item"),
        ("{example: 3}", "mode_connectivity.example: unknown key; did you mean 'examples'"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path: Path, settings: str, message: str) -> None:
    file = tmp_path / "wrong.yaml"
    text = (ROOT / "config" / "smoke.yaml").read_text()
    file.write_text(re.sub(r"(?m)^mode_connectivity:.*\n", "", text) + f"\nmode_connectivity: {settings}\n")
    with pytest.raises(UserError, match=message):
        reading.load(file)
