"""Digests of code and files, and the JSON beside artifacts."""

import time
from pathlib import Path

import pytest

from mergetime.core import provenance


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one module that a script imports and one that it does not."""
    package = tmp_path / "mergetime"
    (package / "methods").mkdir(parents=True)
    for name in ("__init__", "used", "unused", "methods/__init__", "methods/found"):
        (package / f"{name}.py").write_text("")
    (package / "used.py").write_text("from mergetime import methods\n")
    (tmp_path / "stage.py").write_text("from mergetime.used import something\n")
    monkeypatch.setattr(provenance, "SCRIPTS", tmp_path)
    return tmp_path


def digest() -> str:
    provenance.code_digest.cache_clear()
    provenance._imports.cache_clear()
    return provenance.code_digest("stage")


@pytest.mark.parametrize(
    "file", ["stage.py", "mergetime/used.py", "mergetime/methods/found.py", "mergetime/__init__.py"]
)
def test_code_that_a_stage_uses_changes_its_digest(scripts: Path, file: str) -> None:
    before = digest()
    text = (scripts / file).read_text()
    (scripts / file).write_text(text + "# changed\n")
    assert digest() != before
    (scripts / file).write_text(text)
    assert digest() == before


def test_other_code_does_not(scripts: Path) -> None:
    before = digest()
    (scripts / "mergetime/unused.py").write_text("x = 1\n")
    assert digest() == before


def test_digests_of_stages_are_of_their_own_code() -> None:
    provenance.code_digest.cache_clear()
    provenance._imports.cache_clear()
    stages = ["train_expert", "merge_experts", "evaluate", "make_table", "make_figure", "collect_results"]
    assert len({provenance.code_digest(stage) for stage in stages}) == len(stages)


def test_a_folder_has_the_digest_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = provenance.sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert provenance.sha256(tmp_path) != before


def test_the_record_names_inputs_by_digest(tmp_path: Path) -> None:
    source, artifact = tmp_path / "in", tmp_path / "out"
    source.write_text("x")
    artifact.write_text("y")
    provenance.record(
        tmp_path / "out.json",
        stage="merge_experts",
        inputs={"source": source},
        config={"seed": 1},
        facts={"n": 2},
        started=time.time(),
        outputs=[artifact],
    )
    found = provenance.read(tmp_path / "out.json")
    assert found["inputs"]["source"]["sha256"] == provenance.sha256(source)
    assert found["outputs"]["out"] == provenance.sha256(artifact)
    assert {"code", "versions", "machine", "wall_s", "peak_memory_mb"} <= set(found)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_evaluating_has_the_digest_of_all_that_evaluates() -> None:
    """Its modules are imported by the suite, and there inside functions."""
    provenance._imports.cache_clear()
    found = provenance._with_imports([provenance.SCRIPTS / "evaluate.py"])
    package = provenance.SCRIPTS / "mergetime/evaluation"
    modules = set(package.glob("*.py")) - {package / "__init__.py"}
    assert len(modules) > 1
    assert modules <= found
    judged = provenance._with_imports([provenance.SCRIPTS / "judge_responses.py"])
    assert modules & judged == {package / "means.py"}, "judging evaluates nothing"
