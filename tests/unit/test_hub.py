"""A folder hub on loopback, used by the hub's own clients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mergetime import hub, provenance
from mergetime.errors import UserError

ROOT = Path(__file__).parents[2]
WRONG = "0" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "hub/models/o/m"
    data = tmp_path / "hub/datasets/o/d"
    for repository in (model, data):
        repository.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    (model / "evil.py").write_text("raise SystemExit")
    (data / "train.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    return tmp_path / "hub"


def fetch(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"scripts/{script}.py"), "--endpoint", "unused", "--hub-folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def test_a_model_is_fetched_at_its_commit_without_its_code(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    revision = hub.revision_of(folder / "models/o/m")
    done = fetch("fetch_model", folder, "--model", "o/m", "--revision", revision, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "fetched.json", "model.safetensors"]
    facts = provenance.read(out / "fetched.json")["facts"]
    assert facts["weights_sha256"] == provenance.sha256(out / "model.safetensors")


def test_a_data_set_is_fetched_into_parquet(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    revision = hub.revision_of(folder / "datasets/o/d")
    options = ["--dataset", "o/d", "--revision", revision, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out/train.parquet").to_pylist() == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [("o/m", WRONG, "the hub has no such commit"), ("o/none", WRONG, "the hub has no such repository")],
)
def test_what_the_hub_lacks_is_said_in_one_line(
    folder: Path, tmp_path: Path, model: str, revision: str, message: str
) -> None:
    done = fetch("fetch_model", folder, "--model", model, "--revision", revision, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: model {model} at {revision}: {message}")
    assert not (tmp_path / "out" / "fetched.json").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hub.folder: .* is no folder"), hub.serving(tmp_path / "none"):
        pass


def test_files_outside_a_repository_are_not_served(folder: Path) -> None:
    import urllib.error
    import urllib.request

    revision = hub.revision_of(folder / "models/o/m")
    with hub.serving(folder) as address:
        for path in ("../../d/train.jsonl", "..%2f..%2f..%2fdatasets/o/d/train.jsonl"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}/o/m/resolve/{revision}/{path}")


def test_a_data_set_without_the_commit_is_said(folder: Path, tmp_path: Path) -> None:
    options = ["--dataset", "o/d", "--revision", WRONG, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert f"error: data set o/d at {WRONG}: the hub has no such commit" in done.stderr


def test_an_empty_data_set_is_said_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "datasets/o/d/train.jsonl").write_text("")
    revision = hub.revision_of(folder / "datasets/o/d")
    options = ["--dataset", "o/d", "--revision", revision, "--config", "None", "--cache", str(tmp_path / "cache")]
    done = fetch("fetch_dataset", folder, *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: data set o/d at {revision}: ")
    assert "empty" in lines[0]
    assert not (tmp_path / "out").exists()
