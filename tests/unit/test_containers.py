"""Every rule that runs something names an image and a conda file; names of images follow what they are made from.

And what they, and the suites that need root, keep on a machine is out of reach of its other users.
"""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from mergetime.core import provenance
from mergetime.workflow import containers

ROOT = Path(__file__).parents[2]
DEFINITIONS = ("containers/mergetime.def", "containers/vllm.def")


def asked_for(image: str, place: str) -> str:
    """What rules name an image, with MERGETIME_CONTAINERS at ``place``."""
    return containers.image(image, place=place, root=ROOT)


def test_every_rule_with_a_command_has_an_image_and_a_conda_file() -> None:
    files = sorted((ROOT / "rules").rglob("*.smk"))
    assert len(files) > 15
    for file in files:
        for rule in re.split(r"^ *rule\b", file.read_text(), flags=re.MULTILINE)[1:]:
            has = [
                re.search(rf"^ +{part}:", rule, re.MULTILINE) is not None for part in ("shell", "container", "conda")
            ]
            assert len(set(has)) == 1, f"{file.name}: {rule.splitlines()[:3]}: shell, container, conda: {has}"


def build(folder: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    """build.sh with a command in Apptainer's place that says what it is called with."""
    stand_in = folder / "apptainer"
    stand_in.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\nfor last; do before=$image; image=$last; done; echo x > "$before"\n'
    )
    stand_in.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "MERGETIME_CONTAINERS": str(folder / "images"),
    }
    return subprocess.run(
        [ROOT / "containers/build.sh", *names], env=environment, capture_output=True, text=True, check=False
    )


def test_images_are_built_under_the_names_that_rules_ask_for(tmp_path: Path) -> None:
    done = build(tmp_path, "train", "evaluate", "publish", "vllm", "--", "--fakeroot")
    assert done.returncode == 0, done.stderr
    images = str(tmp_path / "images")
    wanted = {asked_for(image, images) for image in ("train", "evaluate", "publish", "vllm")}
    assert {str(file) for file in (tmp_path / "images").iterdir()} == wanted
    assert done.stdout.count("--fakeroot") == 3, "train and evaluate are one image"
    assert done.stdout.count("TORCH=no") == 1
    again = build(tmp_path, "train")
    assert again.stdout.endswith("is there\n")


def test_images_of_a_registry_are_asked_for_by_tag() -> None:
    found = asked_for("train", "oras://registry.example.org/mergetime")
    assert re.fullmatch(r"oras://registry\.example\.org/mergetime/train:[0-9a-f]{12}", found)


def test_the_backend_has_its_own_image() -> None:
    assert [containers.evaluating(backend) for backend in ("hf", "vllm")] == ["evaluate", "vllm"]


@pytest.mark.parametrize("changed", ["envs/gpu.lock", "envs/requirements.lock"])
def test_another_lock_is_another_image(tmp_path: Path, changed: str) -> None:
    names = {}
    for lock in ("a", "b"):
        root = tmp_path / lock
        for file in ("envs/torch.txt", "envs/gpu.lock", "envs/requirements.lock", *DEFINITIONS):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(lock if file == changed else "")
        names[lock] = containers.image("train", place="images", root=root)
    assert names["a"] != names["b"]


def test_an_unknown_image_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, "trian")
    assert (done.returncode, done.stderr) == (
        1,
        "error: no image is called trian; there are train, evaluate, publish, vllm\n",
    )


@pytest.mark.parametrize("definition", ["mergetime", "vllm"])
def test_bases_are_pinned_by_digest(definition: str) -> None:
    text = (ROOT / f"containers/{definition}.def").read_text()
    assert re.search(r"^    BASE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)


def cache_of(definition: str, folder: Path) -> Path:
    """Where a job in an image keeps its caches, on a machine whose temporary folder is ``folder``."""
    text = (ROOT / f"containers/{definition}.def").read_text()
    (section,) = re.findall(r"^%environment\n(.*?)^%", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["sh", "-euc", f"{section}\nprintf %s $XDG_CACHE_HOME"],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(done.stdout)


@pytest.mark.parametrize("definition", ["mergetime", "vllm"])
def test_caches_are_kept_in_a_folder_of_the_user_alone(definition: str, tmp_path: Path) -> None:
    cache = cache_of(definition, tmp_path)
    assert cache == tmp_path / f"mergetime-cache-{os.getuid()}"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert cache_of(definition, tmp_path) == cache
    cache.chmod(0o755)
    assert cache_of(definition, tmp_path) == cache
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("definition", ["mergetime", "vllm"])
@pytest.mark.parametrize("planted", ["link", "file", "of another"])
def test_caches_are_never_in_what_somebody_else_put_there(definition: str, planted: str, tmp_path: Path) -> None:
    expected, victim = tmp_path / f"mergetime-cache-{os.getuid()}", tmp_path / "victim"
    victim.mkdir(mode=0o755)
    if planted == "link":
        expected.symlink_to(victim)
    elif planted == "file":
        expected.touch()
    elif os.getuid():
        pytest.skip("only root gives folders away")
    else:
        expected.mkdir()
        os.chown(expected, 12345, 12345)
    cache = cache_of(definition, tmp_path)
    assert cache not in (expected, victim)
    assert (cache.parent, cache.stat().st_mode & 0o777, cache.owner()) == (tmp_path, 0o700, tmp_path.owner())
    assert victim.stat().st_mode & 0o777 == 0o755


def private_folder(folder: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """What the suites' scripts do before they write into a folder."""
    command = f". {ROOT}/tests/private_folder.sh; private_folder {folder}"
    return subprocess.run(["bash", "-euc", command], cwd=cwd, capture_output=True, text=True, check=False)


def test_suites_write_into_a_folder_of_the_user_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    for folder in ("new/below", "state"):
        assert private_folder(folder, tmp_path).returncode == 0
        assert (tmp_path / folder).stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("planted", ["link", "link/", "of another"])
def test_suites_write_into_nothing_that_somebody_else_put_there(planted: str, tmp_path: Path) -> None:
    name = planted.rstrip("/")
    if name == "link":
        (tmp_path / "victim").mkdir()
        (tmp_path / name).symlink_to("victim")
    elif os.getuid():
        pytest.skip("only root gives folders away")
    else:
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 12345, 12345)
    done = private_folder(f"'{planted}'", tmp_path)
    assert (done.returncode, done.stderr.startswith(f"error: {planted} is not a folder of your own")) == (1, True)


def test_a_record_names_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def container() -> str | None:
        provenance.record(tmp_path / "a.json", stage="make_table", inputs={}, config={}, facts={}, started=time.time())
        found: str | None = provenance.read(tmp_path / "a.json")["machine"].get("container")
        return found

    monkeypatch.delenv("APPTAINER_CONTAINER", raising=False)
    assert container() is None
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/train-0123456789ab.sif")
    assert container() == "train-0123456789ab.sif"
