"""Every config plans, and what is wrong with one is said in one line."""

import shutil
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, SMOKE, run_in

# The rehearsal is no study by itself but is laid over the paper's; test_paper.py plans both.
CONFIGS = sorted({path.name for path in (ROOT / "config").glob("*.yaml")} - {"rehearsal.yaml"})
HASH = "0123456789" * 4


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_plans(clone: Path, config: str) -> None:
    done = run_in(clone, "-n", "--configfile", f"config/{config}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "train_expert" in done.stdout


def test_the_repository_may_lie_in_a_folder_with_a_blank(clone: Path, tmp_path: Path) -> None:
    folder = clone.rename(tmp_path / "my clone's")
    done = run_in(folder, "audit_published", *SMOKE, "--cores", "1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "results/smoke/published/audit.md").is_file()


def test_the_demo_is_the_default(clone: Path) -> None:
    done = run_in(clone, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "results/demo/study.json" in run_in(clone, "-n").stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pools:", "polls:", "error: config/smoke.yaml: pools: Field required; config/smoke.yaml: polls: unknown key; did you mean 'pools'?"),
        ("method: ties,", "method: tiess,", "error: config/smoke.yaml: methods.ties_adapter: unknown merge method 'tiess'; did you mean 'ties'?"),
        ("density: 0.5", "density: 1.5", "error: config/smoke.yaml: methods.ties_adapter: density: 1.5 is outside (0, 1]"),
        ("at: 2x", "at: 4x", "error: config/smoke.yaml: pools.random_subsets.at: '4x' is not a duration of this study"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_line(clone: Path, old: str, new: str, message: str) -> None:
    config = clone / "config/smoke.yaml"
    config.write_text(config.read_text().replace(old, new))
    done = run_in(clone, *SMOKE, "-n")
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert "Traceback" not in done.stdout
    assert not (clone / "results").exists()


@pytest.mark.parametrize(
    ("target", "paper", "message"),
    [
        ("table_5", "duration", "table_5 needs a third base; this study has 1"),
        ("results/smoke/tables/table_9.md", "duration", "table_9 needs a third base; this study has 1"),
        ("compare_published", "null", "compare_published needs a paper with printed numbers in config/papers"),
        ("claims", "null", "claims needs claims; the study's key claims names none"),
    ],
)
def test_what_a_study_cannot_have_is_one_line(clone: Path, target: str, paper: str, message: str) -> None:
    config = clone / "config/smoke.yaml"
    config.write_text(config.read_text().replace("paper: duration", f"paper: {paper}"))
    done = run_in(clone, *SMOKE, "-n", target)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stdout[-3000:]
    assert errors[0].startswith(f"error: {message}")
    assert "Traceback" not in done.stdout
    assert "Exception" not in done.stdout


def test_a_study_without_a_paper_has_the_common_tables(clone: Path) -> None:
    config = clone / "config/smoke.yaml"
    config.write_text(config.read_text().replace("paper: duration\n", ""))
    done = run_in(clone, *SMOKE, "-n", "all", "report")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "results/smoke/tables/sources.md" in done.stdout
    assert "make_figure" not in done.stdout
    assert "judge_claims" not in done.stdout


def test_a_branch_is_no_revision(clone: Path) -> None:
    config = clone / "config/smoke.yaml"
    lines = [line.split("revision: ")[0] + "revision: main" + line.split("revision: ")[1][40:] if "model: mergetime/qwen" in line else line for line in config.read_text().splitlines()]  # fmt: skip
    config.write_text("\n".join(lines))
    done = run_in(clone, *SMOKE, "-n")
    assert done.returncode == 1
    assert "error: config/smoke.yaml: bases.qwen3.5-demo.revision: 'main' is not a commit hash" in done.stdout


@pytest.fixture
def fetched(finished: Path, tmp_path: Path) -> Path:
    """A finished study whose experts have not been trained."""
    folder = Path(shutil.copytree(finished, tmp_path / "study"))
    shutil.rmtree(folder / "results")
    return folder


def failure(folder: Path, target: str) -> str:
    """The one line of a target that fails; its output must not be there."""
    done = run_in(folder, target, *SMOKE)
    assert done.returncode == 1
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("error:")]
    assert len(lines) == 1, done.stdout[-3000:]
    assert not (folder / target).exists()
    assert not [file for file in (folder / "results").rglob("*") if file.is_file()]
    return lines[0]


def test_a_column_that_is_missing_is_named(fetched: Path) -> None:
    config = fetched / "config/smoke.yaml"
    config.write_text(config.read_text().replace("format: aya", "format: dart_math"))
    line = failure(fetched, "results/smoke/data/multilingual/train.parquet")
    assert "column query, response is missing, which format dart_math reads; it has: inputs, targets" in line


def test_a_split_that_is_missing_is_named(fetched: Path) -> None:
    config = fetched / "config/smoke.yaml"
    config.write_text(config.read_text().replace("format: aya", "split: trian, format: aya"))
    line = failure(fetched, "results/smoke/data/multilingual/train.parquet")
    assert "it has no split 'trian'; it has: train" in line


def test_a_domain_with_too_little_is_counted(fetched: Path) -> None:
    config = fetched / "config/smoke.yaml"
    config.write_text(config.read_text().replace("format: aya, train: 40", "format: aya, train: 4000"))
    line = failure(fetched, "results/smoke/data/multilingual/train.parquet")
    assert "usable examples of" in line
    assert "4000 train + 16 validation are asked for" in line


def test_a_commit_that_the_hub_lacks(fetched: Path) -> None:
    config = fetched / "config/smoke.yaml"
    before = config.read_text()
    revision = before.split("dataset: mergetime/demo-aya, revision: ")[1][:40]
    config.write_text(before.replace(revision, HASH))
    line = failure(fetched, f"resources/datasets/mergetime/demo-aya/None/{HASH}/fetched.json")
    assert f"data set mergetime/demo-aya at {HASH}: the hub has no such commit; correct revision in the config" in line


def test_an_adapter_of_another_base_is_refused(fetched: Path) -> None:
    import json

    from mergetime.hub.server import revision_of

    adapter = fetched / "resources/demo/hub/models/mergetime/demo-polite-adapter"
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "o/other"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    smoke = fetched / "config/smoke.yaml"
    before = smoke.read_text()
    revision = before.split("demo-polite-adapter, revision: ")[1][:40]
    smoke.write_text(before.replace(revision, revision_of(adapter)))
    line = failure(fetched, "results/smoke/experts/qwen3.5-demo/imported/polite/adapter_model.safetensors")
    assert "trained on base o/other, this study's is mergetime/qwen3.5-demo; choose an adapter of this base" in line
