"""Interference between experts, against brute force on whole vectors in NumPy."""

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from mergetime.analysis.collecting import OF, POOL
from mergetime.artifacts.adapters import load_delta
from mergetime.config import reading
from mergetime.config.study import Study
from mergetime.core import tables
from mergetime.core.errors import UserError
from mergetime.measuring import interference
from mergetime.measuring.columns import INTERFERENCE, METRICS, TENSORS
from mergetime.measuring.interference import Interference, measure
from mergetime.merging import pool, trimming
from mergetime.merging.layers import layer_of
from mergetime.merging.opening import open_pool
from mergetime.study.pools import pools_on

ROOT = Path(__file__).parents[2]
NAMES = ("code", "math", "safety")
MODULES = {
    "model.layers.0.self_attn.q_proj": (7, 5),
    "model.layers.0.mlp.up_proj": (9, 5),
    "model.layers.10.mlp.up_proj": (9, 5),
}
TENSORS_OF_CHECKPOINT = {
    "model.embed_tokens.weight": (13, 4),
    "model.layers.0.linear_attn.conv1d.weight": (6, 1, 3),
    "model.layers.0.linear_attn.dt_bias": (),
    "model.layers.0.mlp.up_proj.weight": (10, 4),
    "model.layers.1.mlp.up_proj.weight": (10, 4),
    "model.norm.weight": (4,),
}
Experts = list[tuple[str, Path]]
Deltas = dict[str, dict[str, np.ndarray]]
Metrics = dict[tuple[Any, ...], float | None]
"""By (layer, expert_a, expert_b, metric)."""


def write_adapter(folder: Path, seed: int, rank: int, whole: bool = False) -> Path:
    """An adapter in PEFT's layout; with ``whole`` its entries are small whole numbers, most of which tie."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for module, (outputs, inputs) in MODULES.items():
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            drawn = torch.randn(shape, generator=generator)
            weights[f"base_model.model.{module}.lora_{factor}.weight"] = drawn.round() if whole else drawn
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def adapters(folder: Path, whole: bool = False) -> tuple[Experts, Deltas]:
    """A pool of adapters with different ranks, and their updates."""
    experts = [(name, write_adapter(folder / name, seed, 2 + seed, whole)) for seed, name in enumerate(NAMES)]
    return experts, {name: {key: t.numpy() for key, t in load_delta(path)} for name, path in experts}


def write_checkpoint(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5_text", "tie_word_embeddings": False}))
    return folder


def checkpoints(folder: Path, whole: bool = False) -> tuple[Experts, Deltas]:
    """A pool of full checkpoints in bf16 with a base; ``safety`` leaves layer 1 as it is."""
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> dict[str, torch.Tensor]:
        return {name: scale * torch.randn(shape, generator=generator) for name, shape in TENSORS_OF_CHECKPOINT.items()}

    base = {name: (8 * t).round() if whole else t.bfloat16() for name, t in draw(1.0).items()}
    write_checkpoint(folder / "base", base)
    experts, deltas = [], {}
    for name in NAMES:
        moved = draw(1.0 if whole else 0.05)
        weights = {key: (t + (moved[key].round() if whole else moved[key])).to(t.dtype) for key, t in base.items()}
        if name == "safety":
            weights |= {key: base[key] for key in base if "layers.1." in key}
        experts.append((name, write_checkpoint(folder / name, weights)))
        deltas[name] = {key: (weights[key].float() - base[key].float()).numpy() for key in sorted(base)}
    return experts, deltas


MAKERS = {"adapters": adapters, "checkpoints": checkpoints}


def measured(experts: Experts, **given: Any) -> Interference:
    base = experts[0][1].parent / "base"
    with open_pool(experts, base=base if base.is_dir() else None) as opened:
        return measure(opened, **given)


def values(found: Interference) -> Metrics:
    """The metrics by (layer, expert_a, expert_b, metric), without NaN."""
    rows: Iterable[Any] = found.metrics.astype(object).where(found.metrics.notna(), None).itertuples(index=False)
    return {(row.layer, row.expert_a, row.expert_b, row.metric): row.value for row in rows}


def angle(a: np.ndarray, b: np.ndarray) -> float | None:
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else None


def brute(deltas: Deltas, keep: float) -> Metrics:
    """Everything that is measured, from the definitions, on concatenated vectors."""
    tensors = list(next(iter(deltas.values())))
    full = {name: np.concatenate([own[t].ravel() for t in tensors]).astype(np.float64) for name, own in deltas.items()}
    size = len(full[NAMES[0]])
    trimmed = {}
    for name, vector in full.items():
        threshold = np.sort(np.abs(vector))[::-1][max(1, int(keep * size)) - 1]
        trimmed[name] = np.where(np.abs(vector) >= threshold, vector, 0.0)
    layers = {layer_of(t): [u for u in tensors if layer_of(u) == layer_of(t)] for t in tensors}
    wanted: Metrics = {}
    for a, b in itertools.combinations(NAMES, 2):
        x, y = trimmed[a], trimmed[b]
        both, either = (x != 0) & (y != 0), (x != 0) | (y != 0)
        wanted[None, a, b, "sign_conflict"] = (x * y < 0).sum() / either.sum()
        wanted[None, a, b, "overlap"] = both.sum() / (x != 0).sum()
        wanted[None, b, a, "overlap"] = both.sum() / (y != 0).sum()
        p, q = np.abs(x[both]), np.abs(y[both])
        wanted[None, a, b, "magnitude_ratio"] = np.mean(np.maximum(p, q) / np.minimum(p, q)) if both.any() else None
        wanted[None, a, b, "cosine"] = angle(full[a], full[b])
        signs = []
        for layer, members in layers.items():
            u, v = (np.concatenate([deltas[e][t].ravel().astype(np.float64) for t in members]) for e in (a, b))
            wanted[layer, a, b, "cosine"] = angle(u, v)
            signs.append(np.sign(angle(u, v) or 0.0))
        for name, sign in (("positive", 1), ("negative", -1), ("zero", 0)):
            wanted[None, a, b, f"layers_{name}"] = signs.count(sign)
    for name in NAMES:
        wanted[None, name, None, "norm"] = float(np.linalg.norm(full[name]))
        wanted[None, name, None, "kept_entries"] = (trimmed[name] != 0).sum()
    stack = np.stack(list(trimmed.values()))
    active = (stack != 0).any(axis=0)
    wanted[None, None, None, "variance"] = np.mean((stack[:, active] ** 2).mean(axis=0))
    wanted[None, None, None, "entries"] = size
    return wanted


def check(found: Metrics, wanted: Metrics) -> None:
    """The same metrics, up to the rounding of B A in blocks of rows."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-7)), key


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("whole", [False, True], ids=["real", "tied"])
@pytest.mark.parametrize("keep", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("block", [1, 24, 1 << 16])
def test_all_metrics_are_those_of_the_definitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, whole: bool, keep: float, block: int
) -> None:
    experts, deltas = MAKERS[kind](tmp_path, whole)
    monkeypatch.setitem(pool.BLOCK, "cpu", block)
    if block == 24:  # a poor sample and little room: the threshold then takes several passes
        monkeypatch.setattr(interference, "SAMPLE", 16)
        monkeypatch.setattr(trimming, "COLLECTED", 8)
    found, wanted = values(measured(experts, keep=keep)), brute(deltas, keep)
    check(found, wanted)
    kept = [value or 0 for key, value in wanted.items() if key[3] == "kept_entries"]
    if whole and keep == 0.2:
        assert max(kept) > int(keep * (wanted[None, None, None, "entries"] or 0)), "all that tie are kept"


def test_two_vectors_by_hand(tmp_path: Path) -> None:
    moved = {"a": [4.0, -3.0, 2.0, 1.0, 0.0, 0.0], "b": [-2.0, -6.0, 0.5, 0.0, 4.0, 0.0]}
    name = "model.layers.0.mlp.up_proj.weight"
    write_checkpoint(tmp_path / "base", {name: torch.full((2, 3), 64.0)})
    experts = [
        (expert, write_checkpoint(tmp_path / expert, {name: 64 + torch.tensor(own).view(2, 3)}))
        for expert, own in moved.items()
    ]
    found = values(measured(experts, keep=0.5))
    # Kept: a has entries 0, 1, 2; b has 0, 1, 4. Both: 0 (opposite signs, 4/2) and 1 (equal signs, 6/3).
    assert found[None, "a", "b", "sign_conflict"] == 1 / 4
    assert found[None, "a", "b", "overlap"] == found[None, "b", "a", "overlap"] == 2 / 3
    assert found[None, "a", "b", "magnitude_ratio"] == 2.0
    assert found[None, "a", "b", "cosine"] == pytest.approx((-8 + 18 + 1) / math.sqrt(30 * 56.25))
    assert found[None, None, None, "variance"] == pytest.approx((20 + 45 + 4 + 16) / 2 / 4)
    assert [found[None, "a", "b", f"layers_{sign}"] for sign in ("positive", "negative", "zero")] == [1, 0, 0]


@pytest.mark.parametrize("kind", MAKERS)
def test_neither_the_order_of_experts_nor_threads_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    experts, _ = MAKERS[kind](tmp_path)
    monkeypatch.setitem(pool.BLOCK, "cpu", 8)
    first, second = measured(experts), measured(experts[::-1], threads=3)
    pd.testing.assert_frame_equal(first.metrics, second.metrics, check_exact=True)
    pd.testing.assert_frame_equal(first.tensors, second.tensors, check_exact=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_cosines_tensor_by_tensor(tmp_path: Path, kind: str) -> None:
    experts, deltas = MAKERS[kind](tmp_path)
    found = measured(experts).tensors
    assert list(found.columns) == list(TENSORS)
    assert len(found) == 3 * len(deltas["math"])
    rows: Iterable[Any] = found.itertuples()
    for row in rows:
        both = (deltas[name][row.tensor].ravel().astype(np.float64) for name in (row.expert_a, row.expert_b))
        wanted = angle(*both)
        assert math.isnan(row.cosine) if wanted is None else row.cosine == pytest.approx(wanted, abs=1e-6)
        assert row.layer == layer_of(row.tensor)


def test_a_layer_that_an_expert_leaves_counts_as_zero(tmp_path: Path) -> None:
    experts, _ = checkpoints(tmp_path)
    found = values(measured(experts))
    assert found["model.layers.1", "code", "safety", "cosine"] is None
    assert found[None, "code", "safety", "layers_zero"] == 1
    assert found[None, "code", "math", "layers_zero"] == 0


def test_an_expert_that_is_the_base_has_no_shares(tmp_path: Path) -> None:
    experts, _ = checkpoints(tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / "two")
    still = values(measured([experts[0], ("two", tmp_path / "two")]))
    assert still[None, "two", None, "kept_entries"] == 0
    assert still[None, "two", "code", "overlap"] is None
    assert still[None, "code", "two", "overlap"] == 0
    assert still[None, "code", "two", "magnitude_ratio"] is None
    assert still[None, "code", "two", "cosine"] is None
    assert still[None, "code", "two", "sign_conflict"] == 0


def test_vectors_without_relation_overlap_by_chance(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    write_checkpoint(tmp_path / "base", {"model.layers.0.mlp.up_proj.weight": torch.zeros(400, 500)})
    experts = [
        (
            name,
            write_checkpoint(
                tmp_path / name, {"model.layers.0.mlp.up_proj.weight": torch.randn(400, 500, generator=generator)}
            ),
        )
        for name in NAMES
    ]
    found = values(measured(experts))
    assert found[None, "code", None, "kept_entries"] == 40_000
    assert found[None, "code", "math", "overlap"] == pytest.approx(0.2, abs=0.01)
    assert found[None, "code", "math", "sign_conflict"] == pytest.approx(0.2 / 2 / 1.8, abs=0.003)
    assert found[None, "code", "math", "cosine"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers.12"),
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", "encoder.block.3"),
        ("decoder.block.3.layer.1.DenseReluDense.wi.weight", "decoder.block.3"),
        ("model.layers.1.mlp.experts.7.up_proj.weight", "model.layers.1"),
        ("bert.encoder.layer.5.output.dense.bias", "bert.encoder.layer.5"),
        ("model.visual.transformer.resblocks.0.ln_1.weight", "model.visual.transformer.resblocks.0"),
        ("model.visual.blocks.2.attn.qkv.weight", "model.visual.blocks.2"),
        ("transformer.h.4.ln_1.weight", "transformer.h.4"),
        ("model.norm.weight", "model.norm.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("classifier.1.weight", "classifier.1.weight"),
    ],
)
def test_layers_are_blocks_and_single_tensors_outside(tensor: str, layer: str) -> None:
    assert layer_of(tensor) == layer


@pytest.mark.parametrize(
    ("keep", "message"),
    [(0.0, "keep: 0.0 is outside (0, 1]"), (1.5, "keep: 1.5 is outside (0, 1]"), (math.nan, "keep: nan is outside")],
)
def test_a_share_that_is_none_is_refused(tmp_path: Path, keep: float, message: str) -> None:
    with pytest.raises(ValueError, match=r"^keep") as caught:
        measured(adapters(tmp_path)[0], keep=keep)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float, everywhere: bool) -> None:
    experts, _ = checkpoints(tmp_path)
    weights = {name: torch.ones(shape) for name, shape in TENSORS_OF_CHECKPOINT.items()}
    broken = weights["model.layers.0.mlp.up_proj.weight"]
    if everywhere:
        broken.fill_(value)
    else:
        broken[3, 2] = value
    save_file(weights, experts[1][1] / "model.safetensors")
    with pytest.raises(UserError) as caught:
        measured(experts, keep=1.0 if everywhere else 0.2)
    wanted = "expert math: model.layers.0.mlp.up_proj.weight holds NaN or infinite values; its training diverged"
    assert str(caught.value) == wanted


def command(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def options(experts: Experts) -> list[object]:
    return [word for name, folder in experts for word in ("--expert", f"{name}={folder}")]


@pytest.mark.parametrize("kind", MAKERS)
def test_the_command_writes_both_tables_and_where_they_came_from(tmp_path: Path, kind: str) -> None:
    experts, deltas = MAKERS[kind](tmp_path)
    base = ["--base", tmp_path / "base"] if kind == "checkpoints" else []
    out = tmp_path / "out" / "seed-1.parquet"
    ended = command("measure_interference.py", *options(experts), *base, "--keep", 0.3, "--out", out)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("3 pairs, ")
    assert len(ended.stdout.splitlines()) == 1
    assert sorted(file.name for file in out.parent.iterdir()) == [
        "seed-1.json",
        "seed-1.parquet",
        "seed-1.tensors.parquet",
    ]
    metrics = tables.read(out, INTERFERENCE)
    assert set(metrics["metric"]) == set(METRICS)
    assert set(metrics["scope"]) == {"model", "layer"}
    found = values(Interference(metrics, tables.read(out.with_suffix(".tensors.parquet"), TENSORS)))
    check(found, brute(deltas, 0.3))
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["stage"] == "measure_interference"
    assert record["config"]["keep"] == 0.3
    assert record["config"]["experts"] == list(NAMES)
    assert set(record["outputs"]) == {"seed-1.parquet", "seed-1.tensors.parquet"}
    assert {f"expert {name}" for name in NAMES} <= set(record["inputs"])


def refusal(*arguments: object) -> str:
    ended = command("measure_interference.py", *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    return ended.stderr.strip()


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    experts, _ = adapters(tmp_path / "adapters")
    full, _ = checkpoints(tmp_path / "full")
    out = ["--out", tmp_path / "out" / "a.parquet"]
    alone = "error: interference is between experts: give two at least, here are 1"
    assert refusal(*options(experts[:1]), *out) == alone
    assert refusal(*options(experts), "--keep", 0, *out) == "error: keep: 0.0 is outside (0, 1]"
    assert "needs the base: give --base a folder" in refusal(*options(full), *out)
    assert "merge one kind at a time" in refusal(*options([experts[0], full[1]]), *out)
    assert "is not there; give the folder of the base" in refusal(*options(full), "--base", tmp_path / "none", *out)
    assert "name a file that ends in .parquet" in refusal(*options(experts), "--out", tmp_path / "out")
    (tmp_path / "full" / "base" / "fetched.json").write_text(json.dumps({"facts": {"weights_sha256": "12" * 32}}))
    (full[0][1] / "expert.json").write_text(json.dumps({"base_sha256": "98" * 32}))
    other = refusal(*options(full), "--base", tmp_path / "full" / "base", *out)
    assert other.startswith(
        f"error: expert code ({full[0][1]}): trained on base 98989898..., this merge is for 12121212"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return reading.load(ROOT / "config" / "smoke.yaml")


def test_pools_are_collected_with_what_they_are(tmp_path: Path, study: Study) -> None:
    (tmp_path / "study.json").write_text(study.model_dump_json())
    measurement = measured(adapters(tmp_path / "experts")[0])
    ended = command(
        "collect_analysis.py", "--analysis", "interference", "--study", tmp_path / "study.json", "--out", tmp_path
    )
    assert ended.returncode == 1, "nothing is measured yet"
    pools = [(base, own) for base in study.bases for own in pools_on(study, base)]
    for base, own in pools:
        for suffix, frame, columns in (
            ("", measurement.metrics, INTERFERENCE),
            (".tensors", measurement.tensors, TENSORS),
        ):
            tables.write(frame, columns, tmp_path / f"analysis/interference/{base}/{own.id}/seed-1{suffix}.parquet")
    ended = command(
        "collect_analysis.py", "--analysis", "interference", "--study", tmp_path / "study.json", "--out", tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = pd.read_parquet(tmp_path / "analysis/interference.parquet")
    assert list(found.columns) == [*OF, *INTERFERENCE, *POOL]
    assert len(found) == len(pools) * len(measurement.metrics)
    durations = found.groupby("pool")["duration"].first()
    assert durations.to_dict() == {own.id: own.duration for _, own in pools}
    tensors = pd.read_parquet(tmp_path / "analysis/interference.tensors.parquet")
    assert list(tensors.columns) == [*OF, *TENSORS, *POOL]
    record = json.loads((tmp_path / "analysis/interference.json").read_text())
    assert record["facts"]["rows"] == {
        "interference.parquet": len(found),
        "interference.tensors.parquet": len(tensors),
    }


def test_a_study_lists_the_analyses_that_it_wants(tmp_path: Path) -> None:
    text = (ROOT / "config" / "smoke.yaml").read_text()
    written = tmp_path / "smoke.yaml"

    def analyses(listed: str) -> list[str]:
        written.write_text(re.sub(r"(?m)^analyses: .*$", listed, text))
        return list(reading.load(written).analyses)

    assert analyses("") == []
    assert analyses("analyses: [interference, bias_variance]") == ["interference", "bias_variance"]
    with pytest.raises(UserError, match=r"analyses\.0: Input should be 'interference'"):
        analyses("analyses: [interferense]")
