"""Verifying a study: what is damaged, missing or unreadable is named, each with what makes it again."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.atomic import write_atomically
from mergetime.packaging import package
from mergetime.packaging.verification import Damage, verify
from tests.unit.test_package import filled

ROOT = Path(__file__).resolve().parents[2]
EXPERT = "experts/b/math/seed-1"
MERGE = "merged/b/all_1x/ties/seed-1"


def artifact(record: Path, stage: str, *names: str, listed: tuple[str, ...] = ()) -> None:
    """Files and their record, as a stage writes them; those ``listed`` go where an expert's record has its durations."""
    for name in (*names, *listed):
        write_atomically(record.parent / name, f"content of {record.parent.name}/{name}")
    digests = {name: provenance.sha256(record.parent / name) for name in listed}
    outputs = [record.parent / name for name in names]
    facts = {"files_sha256": digests} if digests else {}
    provenance.record(record, stage=stage, inputs={}, config={}, facts=facts, started=time.time(), outputs=outputs)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """results/demo with an artifact of each kind, beside what it fetched."""
    folder = tmp_path / "results/demo"
    adapter = "1x/adapter_model.safetensors"
    artifact(folder / EXPERT / "expert.json", "train_expert", "curve.parquet", listed=(adapter, "1x/config.json"))
    artifact(folder / MERGE / "merged.json", "merge_experts", "task_vector.safetensors")
    artifact(folder / "evaluations/bases/b/test.json", "evaluate", "test.parquet", "test.samples.parquet")
    artifact(folder / "selections/b/all_1x/ties/seed-1.json", "select_hyperparameters")
    artifact(tmp_path / "resources/models/o/m/fetched.json", "fetch_model", "model.safetensors", "config.json")
    (folder / MERGE / "adapter_config.json").write_text('{"r": 4}')
    (folder / "study.json").write_text('{"study": "demo"}')
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/state.json").write_text("{")
    return folder


@pytest.fixture
def fetched(tmp_path: Path) -> list[Path]:
    """What the study fetches; one of the two has not been yet."""
    return [tmp_path / f"resources/models/o/{name}/fetched.json" for name in ("m", "later")]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_whole_study_is_counted(study: Path, fetched: list[Path]) -> None:
    report = verify(study, [*fetched, study / EXPERT / "expert.json"])
    assert (report.records, report.files, report.damages) == (5, 3 + 1 + 2 + 0 + 2, ())


@pytest.mark.parametrize(
    ("name", "harm", "problem", "record"),
    [
        (f"{EXPERT}/curve.parquet", truncate, "damaged", f"{EXPERT}/expert.json"),
        (f"{EXPERT}/1x/adapter_model.safetensors", flip, "damaged", f"{EXPERT}/expert.json"),
        (f"{EXPERT}/1x/config.json", flip, "damaged", f"{EXPERT}/expert.json"),
        ("evaluations/bases/b/test.samples.parquet", Path.unlink, "missing", "evaluations/bases/b/test.json"),
        (f"{MERGE}/task_vector.safetensors", Path.unlink, "missing", f"{MERGE}/merged.json"),
        (f"{MERGE}/merged.json", halve, "unreadable", f"{MERGE}/merged.json"),
        ("selections/b/all_1x/ties/seed-1.json", lambda file: file.write_bytes(b"\xff"), "unreadable", "selections/b/all_1x/ties/seed-1.json"),
        (f"{MERGE}/adapter_config.json", truncate, "unreadable", f"{MERGE}/adapter_config.json"),
        ("study.json", lambda file: file.write_text(""), "unreadable", "study.json"),
    ],
)  # fmt: skip
def test_one_harmed_file_is_named_with_what_makes_it_again(
    study: Path, fetched: list[Path], name: str, harm: Callable[[Path], object], problem: str, record: str
) -> None:
    harm(study / name)
    found = verify(study, fetched).damages
    assert [(damage.path, damage.target) for damage in found] == [(study / name, study / record)]
    assert found[0].problem.startswith(problem)


@pytest.mark.parametrize("text", ["", "{", '{"stage": "evaluate"}', '{"outputs": {}}', '{"stage": "s", "outputs": [1]}', '{"stage": "s", "outputs": {"a": 1}}'])  # fmt: skip
def test_a_broken_record_is_unreadable(study: Path, text: str) -> None:
    record = study / "evaluations/bases/b/test.json"
    record.write_text(text)
    assert [(damage.path, damage.problem.partition(":")[0]) for damage in verify(study).damages] == [
        (record, "unreadable")
    ]


def test_fetched_files_are_compared_too(study: Path, fetched: list[Path]) -> None:
    flip(fetched[0].with_name("model.safetensors"))
    fetched[0].with_name("config.json").unlink()
    found = verify(study, fetched).damages
    assert [(damage.path.name, damage.target) for damage in found] == [
        ("config.json", fetched[0]),
        ("model.safetensors", fetched[0]),
    ]
    assert verify(study).damages == ()


def test_a_dense_merge_that_is_not_kept_may_be_missing_but_not_damaged(study: Path) -> None:
    weights = study / MERGE / "task_vector.safetensors"
    flip(weights)
    assert [damage.path for damage in verify(study, keeps_dense=False).damages] == [weights]
    weights.unlink()
    assert verify(study, keeps_dense=False).damages == ()
    (study / EXPERT / "1x/adapter_model.safetensors").unlink()
    assert len(verify(study, keeps_dense=False).damages) == 1


def made_from(study: Path, file: Path) -> Path:
    """The record of an evaluation of these weights."""
    record = study / "evaluations/merged/test.json"
    provenance.record(record, stage="evaluate", inputs={"w": file}, config={}, facts={}, started=time.time())
    return record


def test_what_was_made_from_another_file_than_is_there_now_is_named(study: Path) -> None:
    weights = study / MERGE / "task_vector.safetensors"
    record = made_from(study, weights)
    assert verify(study).damages == ()
    weights.write_text("merged again")
    provenance.record(
        weights.with_name("merged.json"),
        stage="merge_experts", inputs={}, config={}, facts={}, started=time.time(), outputs=[weights],
    )  # fmt: skip
    assert verify(study).damages == (
        Damage(record, f"made from another {weights} than is there now", record, outdated=True),
    )
    weights.unlink()
    assert verify(study, keeps_dense=False).damages == ()


def test_what_was_made_from_a_file_that_is_damaged_now_is_whole(study: Path) -> None:
    weights = study / MERGE / "task_vector.safetensors"
    made_from(study, weights)
    flip(weights)
    assert [damage.path for damage in verify(study).damages] == [weights]


def test_a_package_is_verified_by_its_own_checksums(study: Path) -> None:
    for name, (columns, _) in package.TABLES.items():
        tables.write(filled(columns), columns, study / name)
    (study / "study.json").write_text(reading.load(ROOT / "config/smoke.yaml").model_dump_json())
    done = run("make_package", "--study", study, "--out", study / "package")
    assert done.returncode == 0, done.stderr
    assert verify(study).damages == ()
    flip(study / "package/results.parquet")
    found = verify(study).damages
    assert [(damage.path, damage.target) for damage in found] == [
        (study / "package/results.parquet", study / "package.json")
    ]


def test_the_command_is_one_line_that_a_shell_takes() -> None:
    damage = Damage(Path("results/a b/x.parquet"), "missing", Path("results/a b/x.json"))
    assert damage.line("--configfile c.yaml") == (
        "results/a b/x.parquet: missing; to make it again: snakemake 'results/a b/x.json' --force --configfile c.yaml"
    )


def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / f"scripts/{script}.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_script_counts_names_and_exits(study: Path, fetched: list[Path]) -> None:
    options: list[str | Path] = [
        "--study",
        study,
        "--fetched",
        *fetched,
        "--configfile",
        "config/demo.yaml",
        "--config",
        "seeds=[1, 2]",
    ]
    done = run("verify_artifacts", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{study}: whole; 8 files are as 5 records say\n"
    truncate(study / EXPERT / "curve.parquet")
    (study / MERGE / "task_vector.safetensors").unlink()
    done = run("verify_artifacts", *options)
    assert done.returncode == 1
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        str(study / EXPERT / "curve.parquet"),
        str(study / MERGE / "task_vector.safetensors"),
    ]
    assert all(
        line.endswith(" --force --configfile config/demo.yaml --config 'seeds=[1, 2]'")
        for line in done.stdout.splitlines()
    )
    assert done.stderr == f"error: {study}: of 8 files that are listed, 2 are not whole\n"


def test_what_is_out_of_date_is_told_from_what_is_harmed(study: Path) -> None:
    weights = study / MERGE / "task_vector.safetensors"
    made_from(study, weights)
    artifact(study / MERGE / "merged.json", "merge_experts")
    weights.write_text("merged again")
    done = run("verify_artifacts", "--study", study)
    assert (done.returncode, done.stderr) == (1, f"error: {study}: of 5 files that are listed, 1 are out of date\n")
    truncate(study / EXPERT / "curve.parquet")
    done = run("verify_artifacts", "--study", study)
    assert done.stderr.endswith("5 files that are listed, 1 are not whole and 1 are out of date\n")


def test_what_the_study_has_no_more_is_left_over_and_fails_nothing(study: Path) -> None:
    """As after a change of its paper: nothing makes these tables again, and nothing of the study is made from them."""
    for name in ("tables/table_3", "tables/health", "figures/figure_1"):
        stage = "make_table" if name.startswith("tables") else "make_figure"
        artifact(study / f"{name}.json", stage, f"{Path(name).name}.parquet")
    (study / "tables/table_3.parquet").write_text("damaged")
    done = run("verify_artifacts", "--study", study, "--published", study / "tables/health.parquet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-1] == [
        f"{study}/{name}.json: left over, as this study has no {Path(name).name} any more; "
        f"to remove it: rm {study}/{name}.*"
        for name in ("figures/figure_1", "tables/table_3")
    ]
    assert [damage.path for damage in verify(study).damages] == [study / "tables/table_3.parquet"]


def test_where_nothing_has_been_made_there_is_nothing_to_verify(tmp_path: Path) -> None:
    done = run("verify_artifacts", "--study", tmp_path / "results/demo")
    assert done.returncode == 1
    assert (
        done.stderr == f"error: {tmp_path}/results/demo: nothing to verify; no file of this study has been made yet\n"
    )
