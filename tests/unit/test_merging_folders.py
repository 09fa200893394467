"""Where a person's merge is written: nothing of theirs is lost, and a merge that was killed is made again."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SCRIPTS = Path(__file__).parents[2] / "scripts"
PREFIX = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(folder: Path, seed: int, inputs: int = 5) -> Path:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    factors = {"lora_A": torch.randn(4, inputs, generator=generator), "lora_B": torch.randn(6, 4, generator=generator)}
    weights = {f"{PREFIX}.{factor}.weight": tensor for factor, tensor in factors.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def words(experts: list[Path], out: Path, *options: str) -> list[str]:
    pool = [word for folder in experts for word in ("--expert", f"{folder.name}={folder}")]
    return [sys.executable, str(SCRIPTS / "merge_experts.py"), *pool, *options, "--out", str(out)]


def merge(experts: list[Path], out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(experts, out, *options), capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def experts(tmp_path: Path) -> list[Path]:
    return [adapter(tmp_path / "experts" / name, seed) for seed, name in enumerate("ab")]


def trained(out: Path) -> str:
    adapter(out, 7)
    return "adapter_config.json"


def with_expert_record(out: Path) -> str:
    out.mkdir()
    (out / "expert.json").write_text("{}")
    return "expert.json"


def with_record_of_others(out: Path) -> str:
    out.mkdir()
    (out / "merged.json").write_text('{"stage": "something", "outputs": {"merged.json": ""}}')
    return "merged.json"


def with_notes(out: Path) -> str:
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "notes.txt").write_text("mine")
    return "deep/notes.txt"


def with_link(out: Path) -> str:
    out.mkdir()
    (out / "adapter_model.safetensors").symlink_to(out.parent / "experts" / "a" / "adapter_model.safetensors")
    return "adapter_model.safetensors"


@pytest.mark.parametrize("fill", [trained, with_expert_record, with_record_of_others, with_notes, with_link])
@pytest.mark.parametrize("method", ["simple_average", "ties"])
def test_a_folder_with_what_no_merge_wrote_stays_as_it_is(
    fill: Callable[[Path], str], method: str, experts: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    name = fill(out)
    kind = "a link" if (out / name).is_symlink() else "a file"
    before = content(out)
    ended = merge(experts, out, "--method", method)
    assert (ended.returncode, ended.stderr) == (
        1,
        f"error: {out / name}: is {kind}, and none of the files of an earlier merge; move it elsewhere, then run again\n",
    )
    dry = merge(experts, out, "--method", method, "--dry-run")
    assert (dry.returncode, dry.stdout, dry.stderr) == (1, "", ended.stderr)
    assert content(out) == before


def test_a_merge_replaces_an_earlier_one_of_any_form(experts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert merge(experts, out, "--method", "simple_average").returncode == 0
    assert merge(experts, out, "--method", "ties").returncode == 0
    assert {path.name for path in out.iterdir()} == {"task_vector.safetensors", "merged.json"}
    (out / "notes.txt").write_text("mine")
    refused = merge(experts, out, "--method", "ties")
    assert refused.stderr.startswith(
        f"error: {out / 'notes.txt'}: is a file, and none of the files of an earlier merge"
    )


def test_a_merge_that_was_trained_on_is_kept(experts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert merge(experts, out, "--method", "simple_average").returncode == 0
    weights = out / "adapter_model.safetensors"
    shutil.copyfile(adapter(tmp_path / "other", 9) / weights.name, weights)
    os.utime(weights, ns=(0, 0))
    refused = merge(experts, out, "--method", "simple_average")
    assert refused.stderr == f"error: {out}: {weights.name} has changed since its merge; give --out another folder\n"
    assert merge(experts, out, "--method", "simple_average", "--dry-run").stderr == refused.stderr


def test_a_dry_run_refuses_a_folder_that_cannot_be_made(experts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "deep" / "out"
    ended, dry = (merge(experts, out, "--method", "ties", *options) for options in ([], ["--dry-run"]))
    assert (dry.returncode, dry.stderr) == (1, ended.stderr)
    assert "not a directory; a part of this path is a file" in dry.stderr


def test_what_ends_in_an_error_leaves_no_folder_and_an_earlier_merge_whole(experts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    other = adapter(tmp_path / "experts" / "c", 3, inputs=6)
    assert merge([*experts, other], out, "--method", "ties").returncode == 1
    assert not out.parent.exists()
    assert merge(experts, out, "--method", "ties").returncode == 0
    before = content(out)
    assert merge([*experts, other], out, "--method", "ties").returncode == 1
    assert content(out) == before


def test_a_merge_that_was_killed_before_its_record_is_made_again(experts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "from mergetime.merging import jobs; import merge_experts, os, sys; jobs.record = lambda *_: os._exit(9)"
    killed = [sys.executable, "-c", f"{script}; merge_experts.run(sys.argv[1:])"]
    command = words(experts, out, "--method", "ties")[2:]
    path = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    assert subprocess.run([*killed, *command], env=path, check=False).returncode == 9
    assert (out / "task_vector.safetensors").is_file()
    assert not (out / "merged.json").exists()
    (out / "notes.txt").write_text("mine")
    refused = merge(experts, out, "--method", "ties")
    assert refused.stderr.startswith(
        f"error: {out / 'notes.txt'}: is a file, and none of the files of an earlier merge"
    )
    (out / "notes.txt").unlink()
    ended = merge(experts, out, "--method", "ties")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {"task_vector.safetensors", "merged.json"}


def test_two_merges_at_once_do_not_mix(experts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".merge_unfinished").open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        refused = merge(experts, out, "--method", "ties")
        dry = merge(experts, out, "--method", "ties", "--dry-run")
    assert dry.stderr == refused.stderr
    assert (refused.returncode, refused.stderr) == (
        1,
        f"error: {out}: another merge is writing there; wait for it, or give --out another folder\n",
    )
    (out / ".merge_unfinished").unlink()
    (out / ".merge_unfinished").symlink_to(tmp_path / "elsewhere")
    assert "is a link, and none of the files of an earlier merge" in merge(experts, out, "--method", "ties").stderr
    assert not (tmp_path / "elsewhere").exists()
