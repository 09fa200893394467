"""A greedy soup chosen by validation loss, of adapters and of whole models, and by a judge."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import select_soup
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergetime.artifacts.apply import applied
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.demo import requests
from mergetime.evaluation import judging
from mergetime.evaluation.losses import evaluate_losses, load_validation
from mergetime.modalities import evaluating, learning, reading
from tests.unit.scripted import parquet

ROOT = Path(__file__).parents[2]
BASE, ADAPTER = ROOT / "config/demo_base", ROOT / "config/demo_adapter"


def whole_model(folder: Path, seed: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def choose(
    folder: Path,
    experts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    suite: dict[str, Any],
    judgements: Sequence[dict[str, Any]] = (),
    judged: Sequence[str] = (),
) -> dict[str, Any]:
    """The facts of a soup of experts whose validation results lie in the folder, by their names."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "NLTK_DATA"):
        monkeypatch.setenv(name, "to be restored")
    monkeypatch.setenv("MERGETIME_SANDBOX", "none")
    how = {"batch_size": 4, "seed": 1, "sandbox": "none", "tasks": str(ROOT / "config/tasks/demo")}
    suite = {"split": "validation", "evaluation": how, "cache": str(folder)} | suite
    told = {
        name: {"folder": str(expert), "scores": f"{folder / name}.parquet"}
        | ({"judged": f"{folder / name}.judged.parquet"} if name in judged else {})
        for name, expert in experts.items()
    }
    arguments = [
        "--base", str(BASE), "--suite", json.dumps(suite), "--experts", json.dumps(told), "--space", "delta",
        "--judgements", json.dumps(list(judgements)), "--tried", str(folder / "tried.parquet"),
        "--out", str(folder / "s.json"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["select_soup.py", *arguments])
    select_soup.run()
    facts: dict[str, Any] = json.loads((folder / "s.json").read_text())["facts"]
    return facts


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
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    examples = load_validation("math", tmp_path / "validation.parquet", reading.get("causal_lm"), tokenizer)
    parts: dict[str, Any] = {"learning": learning.get("causal_lm"), "evaluating": evaluating.get("causal_lm")}
    values = {}
    for name, folder in experts.items():
        with applied(model, folder):
            metrics, _ = evaluate_losses(model, [examples], **parts, batch_size=4)
        pd.DataFrame(metrics).to_parquet(tmp_path / f"{name}.parquet")
        values[name] = metrics[0]["value"]
    losses = {"math": str(tmp_path / "validation.parquet")}
    facts = choose(tmp_path, experts, monkeypatch, {"validation_loss": losses})
    assert facts["dtype"] == "float32"
    assert facts["trials"][0]["score"] == max(values.values())
    tried = pd.read_parquet(tmp_path / "tried.parquet")
    assert tried["value"].tolist() == [facts["trials"][1]["score"]]
    if whole:
        middle = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in experts.values()]
        model.load_state_dict({name: (states[0][name] + states[1][name]) / 2 for name in middle})
        wanted = evaluate_losses(model, [examples], **parts, batch_size=4)[0][0]["value"]
        assert tried["value"][0] == pytest.approx(wanted, rel=1e-5)
    else:
        assert tried["value"][0] == pytest.approx(values["a"], rel=1e-5)


REFUSED = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"


def test_members_are_chosen_by_the_judge_of_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keywords prefer the expert a, the judge prefers b; of a soup, it takes every answer for a refusal."""
    parquet(tmp_path / "requests", "test", requests.benchmark("test", 4))
    experts = {name: Path(shutil.copytree(ADAPTER, tmp_path / name)) for name in ("a", "b")}
    common = {"benchmark": "requests", "domain": "safety", "primary": True}
    for name, keywords, judged in (("a", 0.5, 0.2), ("b", 0.0, 0.7)):
        for part, metric, value in (("parquet", "none", keywords), ("judged.parquet", "wildguard", judged)):
            row = {**common, "metric": f"refusal_rate,{metric}", "value": value}
            pd.DataFrame([row]).to_parquet(tmp_path / f"{name}.{part}")
    monkeypatch.setattr(judging, "load_judge", lambda *_: (None, None))
    monkeypatch.setattr(judging, "ask", lambda model, tokenizer, prompts, batch_size: [REFUSED] * len(prompts))
    (tmp_path / "fetched.json").write_text("{}")
    benchmark = {
        "task": "demo_requests", "dataset": "demo/requests", "revision": "0" * 40, "metric": "refusal_rate,none",
        "max_new_tokens": 4,
    }  # fmt: skip
    told = {"name": "requests", "domain": "safety", "folders": {"None": str(tmp_path / "requests")}}
    suite = {"benchmarks": [told | {"benchmark": benchmark}]}
    judge = {
        "benchmark": "requests", "kind": "wildguard", "model": "demo/judge", "revision": "0" * 40,
        "folder": str(tmp_path), "dtype": "float32", "batch_size": 2,
    }  # fmt: skip
    facts = choose(tmp_path, experts, monkeypatch, suite, [judge], list(experts))
    assert [(trial["members"], trial["score"]) for trial in facts["trials"]] == [(["b"], 0.7), (["b", "a"], 1.0)]
    tried = pd.read_parquet(tmp_path / "tried.parquet").set_index("metric")
    assert tried["primary"].to_dict() == {
        "refusal_rate,none": False,
        "over_refusal_rate,none": False,
        "refusal_rate,wildguard": True,
        "over_refusal_rate,wildguard": False,
    }
    assert tried["value"]["refusal_rate,none"] < 1.0
    assert choose(tmp_path, experts, monkeypatch, suite)["trials"][0]["members"] == ["a"]
    with pytest.raises(UserError, match="--experts: b has no file judged; give it where there are --judgements"):
        choose(tmp_path, experts, monkeypatch, suite, [judge], ["a"])
    with pytest.raises(UserError, match="--experts: a has a file judged; give it where there are --judgements"):
        choose(tmp_path, experts, monkeypatch, suite, [], ["a"])
