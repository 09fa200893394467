"""The command line of merge_experts: what it reads, what it records, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import merge_experts
import pytest
import torch
from safetensors.torch import save_file

from mergetime.artifacts.adapters import load_delta
from mergetime.merging import engine
from mergetime.merging.preview import Preview

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "merge_experts.py"
POOL_SCRIPT = SCRIPTS / "merge_pool.py"
Experts = list[tuple[str, Path]]
PREFIX = "base_model.model.model.layers.0.mlp.up_proj"


@pytest.fixture
def experts(tmp_path: Path) -> Experts:
    """Three adapters of one module in PEFT's layout."""
    made = []
    for seed, name in enumerate(("math", "code", "safety")):
        generator = torch.Generator().manual_seed(seed)
        folder = tmp_path / name
        folder.mkdir()
        factors = {"lora_A": torch.randn(4, 5, generator=generator), "lora_B": torch.randn(6, 4, generator=generator)}
        weights = {f"{PREFIX}.{factor}.weight": tensor for factor, tensor in factors.items()}
        save_file(weights, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
        made.append((name, folder))
    return made


def command(*arguments: object, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(script), *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("options", "form", "rank"),
    [
        (["--method", "simple_average"], "adapter", 5),
        (["--method", "simple_average", "--space", "adapter"], "adapter", 4),
        (["--method", "ties", "--output", "adapter", "--rank", "2"], "adapter", 2),
        (["--method", "ties"], "delta", None),
    ],
)
def test_a_dry_run_says_what_would_be_merged_and_writes_nothing(
    experts: Experts, tmp_path: Path, options: list[str], form: str, rank: int | None
) -> None:
    words = [word for name, folder in experts for word in ("--expert", f"{name}={folder}")]
    arguments = merge_experts.parser().parse_args([*words, *options, "--out", str(tmp_path / "out"), "--dry-run"])
    _, told = merge_experts.by_options(arguments)
    would_be = Preview(**engine.merge(**told, dry_run=True))
    assert (would_be.tensors, would_be.entries, would_be.members) == ({"linear": 1}, {"linear": 30}, 3)
    assert would_be.form == form
    assert would_be.written == 4 * (11 * rank if rank else 30)
    assert not (tmp_path / "out").exists()
    # What is written then is that, and the header.
    engine.merge(**told)
    (weights,) = (tmp_path / "out").glob("*.safetensors")
    assert weights.stat().st_size - would_be.written < 600


def test_the_command_of_a_dry_run(experts: Experts, tmp_path: Path) -> None:
    words = [word for name, folder in experts for word in ("--expert", f"{name}={folder}")]
    ended = command(*words, "--method", "ties", "--out", tmp_path / "out", "--dry-run")
    assert (ended.returncode, ended.stderr) == (0, "")
    role, would_be = ended.stdout.splitlines()
    assert role == "linear: 1 tensor, 30 entries"
    assert would_be.startswith("would be written as delta: about 0.0 MB, ")
    assert would_be.endswith(" s on one core; nothing was written")
    assert not (tmp_path / "out").exists()
    # How long singular values take is not known beforehand.
    spectral = command(*words, "--method", "subspace_boosting_ties", "--out", tmp_path / "out", "--dry-run")
    assert spectral.stdout.endswith("the time that singular values take; nothing was written\n")
    refused = command(*words, "--method", "ties", "--out", experts[0][1], "--dry-run")
    assert (refused.returncode, refused.stdout) == (1, "")


def test_command_merges_the_selected_members_with_what_was_chosen(experts: Experts, tmp_path: Path) -> None:
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps({"facts": {"chosen": {"lambda": 0.5}, "members": ["math", "code"]}}))
    pool = [word for name, folder in experts for word in ("--expert", f"{name}={folder}")]
    out = tmp_path / "out"
    options = ["--method", "task_arithmetic", "--set", "lambda=1", "--selection", selection, "--out", out]
    ended = command(*pool, *options)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "written as adapter" in ended.stdout
    record = json.loads((out / "merged.json").read_text())
    assert record["config"]["params"] == {"lambda": 0.5, "over": "sum", "weights": None, "tables": "merged"}
    assert record["config"]["members"] == ["code", "math"]
    assert set(record["outputs"]) == {"adapter_model.safetensors", "adapter_config.json"}
    files = {"expert math", "config of math", "expert code", "config of code"}
    assert set(record["inputs"]) == files | {"selection", "architecture"}
    deltas = [dict(load_delta(folder)) for _, folder in experts[:2]]
    for name, tensor in load_delta(out):
        torch.testing.assert_close(tensor, 0.5 * (deltas[0][name] + deltas[1][name]))


def test_several_merges_in_one_process_are_those_of_a_process_each(experts: Experts, tmp_path: Path) -> None:
    pool = [word for name, folder in experts for word in ("--expert", f"{name}={folder}")]
    fetched = tmp_path / "fetched.json"
    fetched.write_text(json.dumps({"facts": {"weights_sha256": "98" * 32}}))
    shared = [*pool, "--seed", 1, "--base", fetched]
    settings = ["--set", "density=0.5"]
    merges = {
        "ties": ({"method": "ties"}, ["--method", "ties", *settings]),
        "dare": (
            {"method": "dare_ties", "space": "adapter", "form": "adapter"},
            ["--method", "dare_ties", "--space", "adapter", *settings],
        ),
    }
    told = [{"out": str(tmp_path / name), "parameters": {"density": 0.5}} | job for name, (job, _) in merges.items()]
    ended = command(*shared, "--merges", json.dumps(told), script=POOL_SCRIPT)
    assert (ended.returncode, ended.stderr) == (0, "")
    for name, (_, options) in merges.items():
        alone = tmp_path / f"{name}_alone"
        assert command(*shared, *options, "--out", alone).returncode == 0
        (weights,) = alone.glob("*.safetensors")
        assert (tmp_path / name / weights.name).read_bytes() == weights.read_bytes()
        found, wanted = (json.loads((folder / "merged.json").read_text()) for folder in (tmp_path / name, alone))
        assert (found["config"], found["outputs"]) == (wanted["config"], wanted["outputs"])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"method": "tie"}, "error: unknown merge method 'tie'; did you mean 'ties'?"),
        ({"method": "ties", "dense": 1}, "error: --merges: 0: dense: unknown key; did you mean 'preset'?"),
        ({}, "error: --merges: 0: method: Field required"),
    ],
)
def test_what_no_merge_can_be_made_of_is_one_line(
    experts: Experts, tmp_path: Path, job: dict[str, object], message: str
) -> None:
    pool = ["--expert", f"math={experts[0][1]}", "--seed", 1, "--base", tmp_path / "none"]
    merges = json.dumps([{"out": str(tmp_path / "out")} | job])
    ended = command(*pool, "--merges", merges, script=POOL_SCRIPT)
    assert (ended.returncode, ended.stderr.strip()) == (1, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "tie"], "error: unknown merge method 'tie'; did you mean 'ties'?"),
        (["--method", "ties", "--set", "density=1.5"], "error: density: 1.5 is outside (0, 1]"),
        (["--method", "greedy_soup"], "error: greedy_soup: needs a --selection that names its members"),
        (["--method", "ties", "--set", "density=1", "--set", "density=2"], "error: --set density is given twice"),
    ],
)
def test_command_fails_in_one_line(experts: Experts, tmp_path: Path, options: list[str], message: str) -> None:
    ended = command("--expert", f"math={experts[0][1]}", *options, "--out", tmp_path / "out")
    assert (ended.returncode, ended.stderr.strip()) == (1, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_command_says_that_there_is_no_gpu(experts: Experts, tmp_path: Path) -> None:
    ended = command(
        "--expert", f"math={experts[0][1]}", "--method", "ties", "--device", "cuda", "--out", tmp_path / "out"
    )
    assert (ended.returncode, ended.stderr.strip()) == (1, "error: device: there is no cuda here; merge on the cpu")


def test_command_takes_the_base_from_its_digest_or_its_record(experts: Experts, tmp_path: Path) -> None:
    (experts[0][1] / "expert.json").write_text(json.dumps({"facts": {"base_sha256": "98" * 32}}))
    fetched = tmp_path / "fetched.json"
    options = ["--expert", f"math={experts[0][1]}", "--method", "ties", "--out", tmp_path / "out"]
    for digest, returncode in (("98" * 32, 0), ("12" * 32, 1)):
        fetched.write_text(json.dumps({"facts": {"weights_sha256": digest}}))
        for base in (["--base", fetched], ["--base-sha256", digest]):
            ended = command(*options, *base)
            assert ended.returncode == returncode
            assert ("trained on base 98989898..., this merge is for 12121212..." in ended.stderr) == bool(returncode)
    assert command(*options, "--base", tmp_path / "none.json").returncode == 1


def test_command_refuses_a_member_that_is_no_expert(experts: Experts, tmp_path: Path) -> None:
    selection = tmp_path / "selection.json"
    selection.write_text(json.dumps({"facts": {"members": ["mathh"]}}))
    pool = ["--expert", f"math={experts[0][1]}"]
    ended = command(*pool, "--method", "greedy_soup", "--selection", selection, "--out", tmp_path / "out")
    wanted = f"error: {selection}: member 'mathh' is no expert of this merge; did you mean 'math'?"
    assert (ended.returncode, ended.stderr.strip()) == (1, wanted)


def test_command_explains_a_method_without_anything_else() -> None:
    ended = command("--explain", "dare_ties")
    assert ended.returncode == 0
    assert "Bernoulli(density)" in ended.stdout


def test_command_loads_neither_transformers_nor_peft() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']; import runpy; import atexit;"
        "atexit.register(lambda: print('loaded', sorted({'torch', 'transformers', 'peft'} & set(sys.modules))));"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.endswith("loaded []\n")
