"""The data package: what is in it, what it says of itself, and that damage shows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mergetime import papers
from mergetime.analysis import barriers, collecting
from mergetime.config import reading
from mergetime.core import provenance, tables
from mergetime.core.atomic import write_atomically
from mergetime.core.errors import UserError
from mergetime.core.tables import Column
from mergetime.packaging import integrity, package

ROOT = Path(__file__).resolve().parents[2]


def filled(columns: dict[str, Column]) -> pd.DataFrame:
    """One row with something of the right type in every column."""
    values: dict[Any, Any] = {pa.string(): "text", pa.int64(): 1, pa.float64(): 0.5, pa.bool_(): False}
    return pd.DataFrame([{name: values[column.type] for name, column in columns.items()}])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The tidy files of a study as they stand in results/{study}."""
    folder = tmp_path / "results/smoke"
    for name, (columns, _) in package.TABLES.items():
        tables.write(filled(columns), columns, folder / name)
    columns = collecting.OF | barriers.COLUMNS | collecting.POOL
    tables.write(filled(columns), columns, folder / "analysis/barriers.parquet")
    (folder / "study.json").write_text(reading.load(ROOT / "config/smoke.yaml").model_dump_json())
    return folder


def run(script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / f"scripts/{script}.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def made(study: Path) -> Path:
    """The package, as the module builds it."""
    folder = study / "package"
    for name, content in package.build(study, "2026-01-31").items():
        write_atomically(folder / name, content)
    return folder


def test_the_scripts_make_and_verify_it(study: Path) -> None:
    folder = study / "package"
    # As Snakemake leaves it for the job.
    (folder / "analysis").mkdir(parents=True)
    done = run("make_package", "--study", study, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert provenance.read(study / "package.json")["facts"]["files"] == sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )
    done = run("verify_package", folder)
    assert (done.returncode, done.stdout) == (0, f"{folder}: whole; where it comes from, its checksums cannot say\n")
    summed = subprocess.run(["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=folder, check=False)
    assert summed.returncode == 0
    (folder / "samples.parquet").unlink()
    (folder / "README.md").write_text("changed")
    done = run("verify_package", folder)
    assert done.returncode == 1
    assert [line.split(": ")[1].removeprefix(f"{folder}/") for line in done.stderr.splitlines()] == [
        "README.md",
        "samples.parquet",
    ]


@pytest.mark.parametrize("stopped", [False, True])
def test_an_earlier_package_is_replaced(study: Path, made: Path, stopped: bool) -> None:
    """All of it, even what is not in the new one, and what was stopped before it had checksums."""
    (study / "analysis/barriers.parquet").unlink()
    (study / "elsewhere").symlink_to(made)
    (made / ".README.md.4711").touch()
    if stopped:
        (made / "checksums.sha256").unlink()
    package.clear(study / "elsewhere", package.build(study, "2026-01-31"))
    assert list(made.iterdir()) == []
    package.clear(study / "none", [])


@pytest.mark.parametrize("planted", ["thesis.md", "analysis/mine.parquet", "old", "README.md"])
def test_a_folder_with_anything_else_is_left_as_it_is(study: Path, made: Path, planted: str) -> None:
    if planted == "old":
        (made / planted).mkdir()
    elif planted == "README.md":
        (made / planted).unlink()
        (made / planted).symlink_to(study / "study.json")
    else:
        (made / planted).write_text("mine")
        # What somebody else's list of digests names is no less his.
        with (made / "checksums.sha256").open("a") as listed:
            listed.write(f"{provenance.sha256(made / planted)}  {planted}\n")
    before = sorted(path.relative_to(made) for path in made.rglob("*"))
    done = run("make_package", "--study", study, "--out", made)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: {made / planted}: is (a file|a link|an empty folder), and none of the files of a data package; "
        "move it elsewhere, then run again\n",
        done.stderr,
    )
    assert sorted(path.relative_to(made) for path in made.rglob("*")) == before


def test_paths_that_lead_out_of_it_and_links_are_damages(made: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (made / "notes.txt").symlink_to(secret)
    (made / "more").symlink_to(tmp_path)
    os.mkfifo(made / "pipe")
    checksums = made / "checksums.sha256"
    listed = checksums.read_text()
    checksums.write_text(
        listed + "".join(f"{provenance.sha256(secret)}  {name}\n" for name in ("notes.txt", "more/secret.txt", "pipe"))
    )
    assert integrity.damages(made) == [
        "more: a link; a package holds its files itself",
        "more/secret.txt: a link; a package holds its files itself",
        "notes.txt: a link; a package holds its files itself",
        "pipe: not a regular file",
    ]
    for path in ("../secret.txt", str(secret)):
        checksums.write_text(f"{listed}{provenance.sha256(secret)}  {path}\n")
        number = len(listed.splitlines()) + 1
        assert f"checksums.sha256: damaged: line {number} leads out of the package: {path}" in integrity.damages(made)


@pytest.mark.parametrize("how", ["pipe", "link"])
def test_checksums_that_never_end_are_not_read(made: Path, how: str) -> None:
    checksums = made / "checksums.sha256"
    checksums.unlink()
    if how == "pipe":
        os.mkfifo(checksums)
    else:
        checksums.symlink_to("/dev/zero")
    wrong = "not a regular file" if how == "pipe" else "a link; a package holds its files itself"
    assert f"checksums.sha256: {wrong}" in integrity.damages(made)


def test_names_of_files_are_printed_on_one_line(made: Path) -> None:
    (made / "x\nerror: all is whole\x1b[2K\u202e").touch()
    assert "x\\nerror: all is whole\\x1b[2K\\u202e: not in checksums.sha256" in integrity.damages(made)


def test_json_nested_too_deeply_is_a_damage(made: Path) -> None:
    (made / "ro-crate-metadata.json").write_text("[" * 100_000 + "]" * 100_000)
    assert any(line.startswith("ro-crate-metadata.json: damaged") for line in integrity.damages(made))


def test_tables_read_it_as_they_read_a_study(study: Path, made: Path) -> None:
    for name, (columns, _) in package.TABLES.items():
        pd.testing.assert_frame_equal(tables.read(made / name, columns), tables.read(study / name, columns))
    pd.testing.assert_frame_equal(
        pd.read_parquet(made / "analysis/barriers.parquet"), pd.read_parquet(study / "analysis/barriers.parquet")
    )
    assert reading.load(made / "study.json") == reading.load(study / "study.json")


def test_every_column_says_what_it_is(made: Path) -> None:
    for file in made.rglob("*.parquet"):
        schema = pq.read_schema(file)
        assert schema.metadata[b"licence"] == b"CC-BY-4.0"
        for field in schema:
            assert field.metadata[b"meaning"] and field.metadata[b"unit"], (file, field.name)
    field = pq.read_schema(made / "analysis/barriers.parquet").field("barrier")
    assert field.metadata[b"unit"] == b"nats per response token"
    assert pq.read_schema(made / "results.parquet").field("value").metadata[b"unit"] == b"share from 0 to 1"
    assert pq.read_schema(made / "results.parquet").field("draw").metadata[b"unit"] == b"none (a label)"
    units = {field.name: field.metadata[b"unit"].decode() for field in pq.read_schema(made / "costs.parquet")}
    assert (units["wall_s"], units["tokens"], units["energy_j"]) == ("seconds", "tokens", "joules")
    assert units["peak_memory_mb"] == units["gpu_peak_memory_mb"] == "MiB"


def test_it_holds_no_text_of_any_data_set() -> None:
    names = {name for columns, _ in package.TABLES.values() for name in columns}
    assert not names & {"prompt", "response", "text", "request", "target", "doc"}
    assert "no response" in package.CONTENT and "BeaverTails" in papers.get("duration").notice


def test_the_crate_describes_every_file(made: Path) -> None:
    crate = json.loads((made / "ro-crate-metadata.json").read_text())
    entities = {entity["@id"]: entity for entity in crate["@graph"]}
    assert len(entities) == len(crate["@graph"])
    assert entities["ro-crate-metadata.json"]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = entities[entities["ro-crate-metadata.json"]["about"]["@id"]]
    assert (root["@type"], root["datePublished"]) == ("Dataset", "2026-01-31")
    listed = {part["@id"] for part in root["hasPart"]}
    present = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    assert listed == present - {"ro-crate-metadata.json", "checksums.sha256"}
    assert all(entities[name]["@type"] == "File" for name in listed)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [value["@id"]] if set(value) == {"@id"} else [r for one in value.values() for r in references(one)]
        return [r for one in value for r in references(one)] if isinstance(value, list) else []

    known = set(entities) | {"https://w3id.org/ro/crate/1.1"}
    assert set(references(crate["@graph"])) <= known


def test_it_can_be_cited(made: Path) -> None:
    citation = yaml.safe_load((made / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "CC-BY-4.0"
    assert str(citation["date-released"]) == "2026-01-31"
    assert citation["authors"] and citation["title"] and citation["message"]


def test_the_same_study_gives_the_same_bytes(study: Path) -> None:
    assert package.build(study, "2026-01-31") == package.build(study, "2026-01-31")


def rewrite(file: Path, change: str) -> None:
    """Damage to a Parquet file that a matching checksum would not show."""
    table = pq.read_table(file)
    if change == "column":
        table = table.drop_columns(["value"])
    elif change == "licence":
        table = table.replace_schema_metadata(None)
    else:
        table = table.cast(pa.schema([field.remove_metadata() for field in table.schema], table.schema.metadata))
    pq.write_table(table, file)


def summed_again(folder: Path) -> None:
    """Make the checksums fit whatever stands there."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    lines = [f"{provenance.sha256(folder / name)}  {name}\n" for name in names if name != "checksums.sha256"]
    (folder / "checksums.sha256").write_text("".join(lines))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("column", "its columns are not this version's; it lacks value"),
        ("licence", "its schema does not state the licence CC-BY-4.0"),
        ("meaning", "column study has no description or unit"),
    ],
)
def test_schemas_are_verified_beside_checksums(made: Path, change: str, problem: str) -> None:
    rewrite(made / "results.parquet", change)
    assert integrity.damages(made) == ["results.parquet: damaged: its SHA-256 is not the recorded one"]
    summed_again(made)
    assert integrity.damages(made) == [f"results.parquet: {problem}"]


def test_each_damage_has_its_line(made: Path) -> None:
    assert integrity.damages(made) == []
    (made / "results.parquet").write_bytes(b"no")
    (made / "analysis/barriers.parquet").unlink()
    (made / "study.json").write_text("{}")
    (made / "notes.txt").write_text("more")
    assert [line.split(": ")[:2] for line in integrity.damages(made)] == [
        ["analysis/barriers.parquet", "missing"],
        ["notes.txt", "not in checksums.sha256"],
        ["results.parquet", "damaged"],
        ["ro-crate-metadata.json", "does not list notes.txt"],
        ["study.json", "damaged"],
    ]
    shutil.rmtree(made)
    made.mkdir()
    assert len(integrity.damages(made)) == len(package.TABLES) + 5


def test_a_package_of_an_earlier_version_is_told_what_it_lacks(made: Path) -> None:
    (made / "costs.parquet").unlink()
    crate = json.loads((made / "ro-crate-metadata.json").read_text())
    (root,) = [entity for entity in crate["@graph"] if entity["@id"] == "./"]
    root["hasPart"].remove({"@id": "costs.parquet"})
    (made / "ro-crate-metadata.json").write_text(json.dumps(crate))
    summed_again(made)
    assert integrity.damages(made) == [
        "costs.parquet: missing, and not in checksums.sha256: an earlier version made no such file"
    ]


@pytest.mark.parametrize("part", [5, None])
def test_a_crate_with_parts_of_no_name_is_none(made: Path, part: Any) -> None:
    crate = json.loads((made / "ro-crate-metadata.json").read_text())
    (root,) = [entity for entity in crate["@graph"] if entity["@id"] == "./"]
    root["hasPart"].append({"@id": part})
    (made / "ro-crate-metadata.json").write_text(json.dumps(crate))
    summed_again(made)
    (line,) = integrity.damages(made)
    assert line.startswith("ro-crate-metadata.json: damaged: no RO-Crate (hasPart names a part by")


@pytest.mark.parametrize("content", ["{", "{}", '{"@graph": [{"@id": "ro-crate-metadata.json"}]}'])
def test_a_crate_that_is_none_is_named(made: Path, content: str) -> None:
    (made / "ro-crate-metadata.json").write_text(content)
    summed_again(made)
    (line,) = integrity.damages(made)
    assert line.startswith("ro-crate-metadata.json: damaged: no RO-Crate")


def test_a_file_that_is_missing_or_old_is_named(study: Path) -> None:
    (study / "curves.parquet").unlink()
    with pytest.raises(UserError, match=r"curves\.parquet: no such file"):
        package.build(study, "2026-01-31")
    pq.write_table(pa.table({"step": [1]}), study / "curves.parquet")
    with pytest.raises(UserError, match=r"curves\.parquet: its columns are not this version's"):
        package.build(study, "2026-01-31")
    done = run("make_package", "--study", study / "elsewhere", "--out", study / "package")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_a_study_without_a_paper_cites_none(study: Path) -> None:
    described = json.loads((study / "study.json").read_text()) | {"paper": None}
    (study / "study.json").write_text(json.dumps(described))
    files = package.build(study, "2026-01-31")
    citation = yaml.safe_load(files["CITATION.cff"])
    assert "references" not in citation
    assert "paper" not in citation["message"]
    graph = json.loads(files["ro-crate-metadata.json"])["@graph"]
    assert "#paper" not in {entity["@id"] for entity in graph}
    assert not [entity for entity in graph if "citation" in entity]
    assert b"BeaverTails" not in files["README.md"]
