"""Training on the demo's base: what is adapted, what is saved, and that a kill changes nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mergetime import provenance
from mergetime.data.formats import chat
from mergetime.training.model import add_lora, load_base, projections

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"
PROJECTIONS = (
    "down_proj gate_proj in_proj_a in_proj_b in_proj_qkv in_proj_z k_proj o_proj out_proj q_proj up_proj v_proj"
)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A base as fetched, and a little data."""
    base = tmp_path / "base"
    base.mkdir()
    for file in BASE.iterdir():
        (base / file.name).symlink_to(file)
    digest = provenance.sha256(BASE / "model.safetensors")
    provenance.record(
        base / "fetched.json", stage="fetch_model", inputs={}, config={}, facts={"weights_sha256": digest}, started=0.0
    )
    for split, numbers in (("train", range(24)), ("validation", range(24, 32))):
        rows = [{"messages": chat(f"Compute {n}+2.", f"{n}+2={n + 2}")} for n in numbers]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    return tmp_path


def command(inputs: Path, out: Path, *options: str) -> list[str]:
    given = {
        "base": inputs / "base", "base-id": "o/b", "train": inputs / "train.parquet", "mode": "lora",
        "validation": inputs / "validation.parquet", "dtype": "float32", "rank": 4, "alpha": 4, "learning-rate": 3e-3,
        "warmup-steps": 2, "batch-size": 4, "micro-batch-size": 2, "save-every": 2, "max-steps": 40, "seed": 1,
        "checkpoints": out / "checkpoints", "out": out / "expert",
    }  # fmt: skip
    listed = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [
        sys.executable,
        str(ROOT / "scripts/train_expert.py"),
        *listed,
        *(options or ("--multiples", "0.25", "1", "5")),
    ]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def digests(out: Path) -> dict[str, str]:
    files = [*out.glob("expert/*/adapter_*"), out / "expert/curve.parquet"]
    return {file.relative_to(out).as_posix(): provenance.sha256(file) for file in files}


def test_a_killed_run_resumes_to_the_same_bytes(inputs: Path) -> None:
    whole, killed = inputs / "whole", inputs / "killed"
    subprocess.run(command(inputs, whole), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    process = subprocess.Popen(
        command(inputs, killed), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((killed / "checkpoints").glob("checkpoint-*/complete")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert not (killed / "expert").exists()
    subprocess.run(command(inputs, killed), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert digests(killed) == digests(whole)
    assert len(digests(whole)) == 7
    assert not (killed / "checkpoints").exists()

    record = provenance.read(whole / "expert/expert.json")
    facts = record["facts"]
    assert facts["target_modules"] == PROJECTIONS.split()
    assert facts["steps"] == {"0.25x": facts["t_star"] // 4, "1x": facts["t_star"], "5x": facts["t_star"] * 5}
    curve = pq.read_table(whole / "expert/curve.parquet").to_pylist()
    assert [row["step"] for row in curve] == list(range(0, facts["last_step"] + 1, 8))


def test_a_run_of_other_settings_starts_anew(inputs: Path) -> None:
    out = inputs / "out"
    (out / "checkpoints/checkpoint-8").mkdir(parents=True)
    (out / "checkpoints/run.json").write_text("{}")
    fixed = command(inputs, out, "--steps", "2", "8")
    subprocess.run(fixed, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert sorted(folder.name for folder in (out / "expert").iterdir() if folder.is_dir()) == ["step_2", "step_8"]


def test_every_projection_is_adapted_and_the_head_is_not() -> None:
    assert projections(load_base(BASE, dtype=torch.float32, four_bit=False)) == PROJECTIONS.split()


def test_four_bit_training_has_gradients_after_an_evaluation() -> None:
    import bitsandbytes

    base = load_base(BASE, dtype=torch.float32, four_bit=True)
    assert any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in base.modules())
    model = add_lora(base, rank=4, alpha=4, seed=1)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    norms = [p.grad.norm() for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    assert norms
    assert all(norm > 0 for norm in norms)
