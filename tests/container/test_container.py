"""The smoke study wholly inside the images of this repository (run.sh), beside its trainings in the plain environment."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mergetime.core.provenance import sha256
from tests.workflow.conftest import ROOT, SMOKE, copy_repository, run_in

# Here root runs Apptainer, which takes all capabilities from root. The sandbox must be able to map root's users.
AS_ROOT = ["--add-caps", "CAP_SETFCAP"]
INSIDE = ["--sdm", "apptainer", f"--apptainer-args={' '.join(AS_ROOT)}", *SMOKE]
# What `all` does not ask for, and can be had of this study.
BESIDE = ["compare_published", "audit_published", "package"]
IMAGES = Path(os.environ["MERGETIME_CONTAINERS"])
# The stages of the records that an image other than that for training makes.
EVALUATE = {"evaluate", "select_soup"}
PUBLISH = {
    "audit_published",
    "collect_analysis",
    "collect_results",
    "compare_published",
    "make_figure",
    "make_package",
    "make_table",
    "select_hyperparameters",
}


def image_of(stage: str) -> str:
    """The name, without the digest, of the image that a stage belongs in."""
    return "evaluate" if stage in EVALUATE else "publish" if stage in PUBLISH else "train"


def records(folder: Path) -> dict[Path, dict[str, dict[str, str]]]:
    """The records of all artifacts of the study and of what it fetched."""
    files = [file for top in ("results", "resources") for file in (folder / top).rglob("*.json")]
    contents = {file: json.loads(file.read_text()) for file in files if "hub" not in file.parts}
    return {file: content for file, content in contents.items() if "machine" in content}


def in_image(image: Path, *options: str, command: list[str]) -> str:
    """What a command prints in an image, started as Snakemake starts it."""
    done = subprocess.run(
        ["apptainer", "exec", "--home", ROOT, *options, image, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the study has run in containers, and what Snakemake said."""
    folder = copy_repository(tmp_path_factory.mktemp("inside"))
    done = run_in(folder, "all", *BESIDE, *INSIDE)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder, done.stdout


def test_every_job_runs_in_an_image(inside: tuple[Path, str]) -> None:
    _, said = inside
    jobs = re.findall(r"^(?:local)?rule (\w+):$", said, re.MULTILINE)
    assert {"train_expert", "merge_pool_0", "evaluate_merged_0", "make_table", "describe_study"} <= set(jobs)
    without_a_command = {"all", "package"}
    assert said.count("Activating singularity image") == len([job for job in jobs if job not in without_a_command])


def test_every_record_names_the_image_of_its_stage(inside: tuple[Path, str]) -> None:
    folder, _ = inside
    images = {image.name.rsplit("-", 1)[0]: image.name for image in IMAGES.glob("*.sif")}
    found = {file: (str(r["stage"]), r["machine"].get("container")) for file, r in records(folder).items()}
    assert {image_of(stage) for stage, _ in found.values()} == {"train", "evaluate", "publish"}
    assert {file: name for file, (_, name) in found.items()} == {
        file: images[image_of(stage)] for file, (stage, _) in found.items()
    }


def test_adapters_are_those_of_the_plain_environment(
    inside: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, _ = inside
    outside = copy_repository(tmp_path_factory.mktemp("outside"))
    adapters = [
        str(file.relative_to(folder))
        for file in sorted(folder.glob("results/smoke/experts/*/*/seed-1/*/adapter_model.safetensors"))
    ]
    assert len(adapters) == 6
    done = run_in(outside, *adapters, *SMOKE)
    assert done.returncode == 0, done.stdout[-5000:]
    assert all("container" not in record["machine"] for record in records(outside).values())
    assert {file: sha256(outside / file) for file in adapters} == {file: sha256(folder / file) for file in adapters}


def test_generated_code_is_sandboxed_inside() -> None:
    (image,) = IMAGES.glob("evaluate-*.sif")
    code = (
        "import sys; sys.path.insert(0, 'scripts'); from mergetime.sandbox import programs; print(programs.available())"
    )
    assert in_image(image, *AS_ROOT, command=["python", "-c", code]) == "None\n"


def test_a_job_with_a_gpu_finds_its_shell_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "91,92")
    (image,) = IMAGES.glob("train-*.sif")
    options = yaml.safe_load((ROOT / "profiles/gpu/config.yaml").read_text())["apptainer-args"].split()
    assert in_image(image, *options, command=["one_gpu.sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]) == "91\n"


def test_a_second_run_does_nothing(inside: tuple[Path, str]) -> None:
    assert "Nothing to be done" in run_in(inside[0], *INSIDE).stdout


def test_another_lock_runs_again_what_was_made_with_it(inside: tuple[Path, str]) -> None:
    folder, _ = inside
    lock = folder / "envs/requirements.lock"
    before = lock.read_text()
    try:
        lock.write_text(before + "# newer\n")
        planned = run_in(folder, "-n", *INSIDE).stdout
    finally:
        lock.write_text(before)
    assert "rule train_expert:" in planned
    assert "Software environment definition has changed" in planned


def test_nothing_is_left_in_the_repository(inside: tuple[Path, str]) -> None:
    folder, _ = inside
    assert not [name for name in (".cache", ".config", ".local", ".triton", "nltk_data") if (folder / name).exists()]


def test_an_image_says_what_it_is_made_from() -> None:
    (image,) = IMAGES.glob("publish-*.sif")
    done = subprocess.run(["apptainer", "inspect", "--json", image], capture_output=True, text=True, check=True)
    labels = json.loads(done.stdout)["data"]["attributes"]["labels"]
    assert labels["org.opencontainers.image.title"] == "mergetime-publish"
    assert re.fullmatch("[0-9a-f]{64}", labels["mergetime.lock.sha256"])
