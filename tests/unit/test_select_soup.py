"""A greedy soup chosen by validation loss, of adapters and of whole models."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import select_soup
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergetime.data.formats import chat
from mergetime.losses import evaluate_losses, load_validation
from mergetime.subjects import applied

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"


def whole_model(folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.002 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["adapters", "whole models"])
def test_members_are_chosen_by_the_loss(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = [{"messages": chat(f"What is {n} and 1?", f"It is {n + 1}."), "tokens": 9} for n in range(4)]
    pq.write_table(pa.Table.from_pylist(chats), tmp_path / "validation.parquet")
    whole = kind == "whole models"
    experts = {
        name: whole_model(tmp_path / name, seed) if whole else Path(shutil.copytree(ADAPTER, tmp_path / name))
        for seed, name in enumerate(("a", "b"))
    }
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    examples = load_validation("math", tmp_path / "validation.parquet", AutoTokenizer.from_pretrained(BASE))
    values = {}
    for name, folder in experts.items():
        with applied(model, folder):
            metrics, _ = evaluate_losses(model, [examples], batch_size=4)
        pd.DataFrame(metrics).to_parquet(tmp_path / f"{name}.parquet")
        values[name] = metrics[0]["value"]
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "MERGETIME_SANDBOX", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, "to be restored")
    arguments = ["--base", str(BASE), "--split", "validation", "--batch-size", "4", "--seed", "1", "--space", "delta"]
    arguments += ["--validation-loss", f"math={tmp_path / 'validation.parquet'}", "--sandbox", "none"]
    arguments += [
        "--cache",
        str(tmp_path),
        "--tried",
        str(tmp_path / "tried.parquet"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    pairs = [f"--expert={name}={folder}:{tmp_path / name}.parquet" for name, folder in experts.items()]
    monkeypatch.setattr(sys, "argv", ["select_soup.py", *arguments, *pairs])
    select_soup.run()
    facts = json.loads((tmp_path / "s.json").read_text())["facts"]
    assert facts["dtype"] == "float32"
    assert facts["trials"][0]["score"] == max(values.values())
    tried = pd.read_parquet(tmp_path / "tried.parquet")
    assert tried["value"].tolist() == [facts["trials"][1]["score"]]
    if whole:
        middle = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in experts.values()]
        model.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in middle})
        wanted = evaluate_losses(model, [examples], batch_size=4)[0][0]["value"]
        assert tried["value"][0] == pytest.approx(wanted, rel=1e-5)
    else:
        assert tried["value"][0] == pytest.approx(values["a"], rel=1e-5)
