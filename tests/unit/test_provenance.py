"""Digests of files, and the JSON beside artifacts."""

import time
from pathlib import Path

from mergetime.core import provenance


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
