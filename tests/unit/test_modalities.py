"""A modality is a folder and nothing else: a toy one is trained, applied, measured and evaluated by the same stages."""

import json
import math
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel

from mergetime.architectures import files as architectures
from mergetime.artifacts.apply import applied
from mergetime.config.evaluation import Benchmark, Evaluation
from mergetime.config.experts import Training
from mergetime.config.sources import Base
from mergetime.core.digests import code_digest, with_imports
from mergetime.core.errors import UserError
from mergetime.evaluation import suite
from mergetime.evaluation.fingerprint import check_applied
from mergetime.evaluation.losses import validation_losses
from mergetime.evaluation.options import SuiteBenchmark, SuiteOptions
from mergetime.measuring import data_statistics
from mergetime.measuring.loading import domain_loss
from mergetime.modalities import evaluating, learning, reading
from mergetime.modalities.evaluating import Rows, Settings
from mergetime.modalities.learning import Activations, Batch, Objective, Predicted
from mergetime.modalities.parts import PARTS, names
from mergetime.training.durations import MultiplesOfOptimum
from mergetime.training.expert import Learner, train_expert
from mergetime.training.schedule import schedule_of
from mergetime.training.signals import Stop, Stopped
from mergetime.training.trainer import Plan

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
FEATURES, CLASSES = 5, 3


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class ToyModel(PreTrainedModel):
    """Integer features to the logits of a few classes."""

    config_class = ToyConfig

    def __init__(self, settings: ToyConfig) -> None:
        super().__init__(settings)
        self.inner = nn.Linear(FEATURES, 16)
        self.outer = nn.Linear(16, CLASSES)
        self.post_init()

    def forward(self, features: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.outer(self.inner(features.float()).tanh()))


@dataclass(frozen=True)
class Integers:
    """An encoded example."""

    features: tuple[int, ...]
    label: int

    length = items = 1


class Toy:
    """All parts of the modality in one object."""

    COLUMNS = ("features", "label")
    UNIT = "example"
    LENGTH = "examples"
    TASK_TYPE: str | None = None

    def reader(self, folder: Path) -> int:
        return int(json.loads((folder / "config.json").read_text())["shift"])

    def encode(self, reader: int, row: Mapping[str, Any]) -> Integers:
        return Integers(tuple(number - reader for number in row["features"]), row["label"])

    def load_base(self, folder: Path, *, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
        assert not four_bit
        model: PreTrainedModel = ToyModel.from_pretrained(folder, dtype=dtype)
        return model

    def projections(self, model: PreTrainedModel) -> list[str]:
        return ["inner", "outer"]

    def activations(self, model: nn.Module, examples: Sequence[Any]) -> Activations:
        return Activations(1, 16, FEATURES + 32 + CLASSES, False, CLASSES, 1, 1)

    def collate(self, batch: Sequence[Integers], padding: int, multiple: int = 1) -> Batch:
        return {
            "features": torch.tensor([example.features for example in batch]),
            "labels": torch.tensor([example.label for example in batch]),
        }

    def padding(self, model: nn.Module) -> int:
        return 0

    def size(self, batch: Batch) -> tuple[torch.Tensor, int]:
        return torch.tensor(len(batch["labels"])), len(batch["labels"])

    def objective(self, model: nn.Module) -> Objective:
        def summed_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            logits = model(features=batch["features"]).logits
            return nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")

        @torch.no_grad()
        def predicted(model: nn.Module, batch: Batch) -> Predicted:
            logits, labels = model(features=batch["features"]).logits, batch["labels"]
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            return Predicted(losses, logits.argmax(-1) == labels, torch.arange(len(labels)))

        return Objective(summed_loss, predicted)

    def logits(self, model: PreTrainedModel, example: Integers) -> torch.Tensor:
        logits: torch.Tensor = model(features=torch.tensor([example.features])).logits
        return logits

    def losses_with(self, model: Any, weights: Mapping[str, torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        batch = self.collate(examples, 0)
        logits = functional_call(model, dict(weights), (), {"features": batch["features"]}).logits
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return torch.stack([losses, torch.ones_like(losses)], dim=1)

    @torch.no_grad()
    def probe(self, model: PreTrainedModel, reader: Any) -> torch.Tensor:
        logits: torch.Tensor = model(features=torch.arange(FEATURES)[None]).logits
        return logits

    def identity(self, row: Mapping[str, Any]) -> Any:
        return [list(row["features"]), row["label"]]

    def texts(self, row: Mapping[str, Any]) -> dict[str, str]:
        return {"request": str(row["features"]), "response": "", "target": str(row["label"])}

    def check_backend(self, backend: str) -> None:
        assert backend == "hf"

    def load_benchmarks(self, told: Sequence[SuiteBenchmark], tasks: Sequence[Path]) -> list[Any]:
        return [
            SimpleNamespace(name=one.name, generates=False, rows=pq.read_table(one.folders["None"]).to_pylist())
            for one in told
        ]

    def evaluate(self, model: Any, reader: int, benchmarks: Sequence[Any], settings: Settings) -> Rows:
        metrics = []
        for benchmark in benchmarks:
            encoded = [self.encode(reader, row) for row in benchmark.rows]
            right = self.objective(model).predicted(model, self.collate(encoded, 0)).right
            metrics.append({"benchmark": benchmark.name, "metric": "accuracy", "value": float(right.float().mean())})
        return metrics, []

    def evaluate_checkpoint(self, folder: Path, benchmarks: Sequence[Any], settings: Settings) -> Rows:
        raise AssertionError("nothing generates")


TOY = Toy()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modality as if it were a folder of the package: nothing else is told of it."""
    for part in PARTS:
        monkeypatch.setitem(sys.modules, f"mergetime.modalities.toy.{part}", TOY)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Examples of a rule, every fourth with a random label: experts overfit soon."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        features = [rng.randrange(1, 5) for _ in range(FEATURES)]
        rule = (features[0] > features[1]) + (features[2] > features[3])
        made.append({"features": features, "label": rule if number % 4 else rng.randrange(CLASSES)})
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    ToyModel(ToyConfig.from_dict({"shift": 2})).save_pretrained(folder / "base")
    for split, count in (("train", 24), ("validation", 60)):
        pq.write_table(pa.Table.from_pylist(rows(count, seed=count)), folder / f"{split}.parquet")
    return folder


def learn(data: Path, out: Path, mode: str, stop: Stop | None = None) -> dict[str, Any]:
    training = Training(
        mode=mode,
        rank=4,
        alpha=8,
        learning_rate=2e-2,
        warmup_steps=2,
        batch_size=4,
        micro_batch_size=2,
        save_every=2,
        max_steps=400,
    )
    learner = Learner(data / "base", "o/toy", training, torch.float32, seed=1, modality="toy")
    durations = MultiplesOfOptimum((0.5, 1, 2), save_every=2, last_step=400)
    plan = Plan(training, schedule_of(training), durations, seed=1, bfloat16=False)
    work = out.with_name(f"{out.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    return train_expert(learner, data / "train.parquet", data / "validation.parquet", plan, work, out, stop or Stop())


def suite_of(data: Path) -> suite.Suite:
    (data / "integers").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows(40, seed=9)), data / "integers/test.parquet")
    integers = Benchmark(task="integers", dataset="o/integers", revision="0" * 40, metric="accuracy")
    told = SuiteOptions(
        split="test",
        modality="toy",
        benchmarks=(
            SuiteBenchmark(name="integers", domain="sums", benchmark=integers, folders={"None": data / "integers"}),
        ),
        validation_loss={"sums": data / "validation.parquet"},
        evaluation=Evaluation(batch_size=8, seed=1),
        cache=data / "cache",
    )
    return suite.load(told, data / "base")


ARCHITECTURE = "model_types: [toy]\nroles: {linear: ['{inner,outer}.weight'], vector: ['{inner,outer}.bias']}\n"


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[None]:
    """The variables that loading sets are restored, and there is an architecture file for the toy."""
    file = tmp_path / "toy.yaml"
    file.write_text(ARCHITECTURE)
    known = [*architectures.files(), file]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architectures, "files", lambda: known)
        architectures._by_model_type.cache_clear()
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "MERGETIME_SANDBOX", "HF_DATASETS_CACHE"):
            patch.setenv(name, "to be restored")
        yield
    architectures._by_model_type.cache_clear()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_an_expert_of_another_modality_is_trained_resumed_applied_and_evaluated(
    mode: str, data: Path, tmp_path: Path, environment: None
) -> None:
    facts = learn(data, tmp_path / "once", mode)
    assert not facts["t_star_boundary"]
    assert facts["steps"]["2x"] == 2 * facts["t_star"]
    stop = Stop()
    stop.name = "SIGURG"
    for step in range(1, 3):
        with pytest.raises(Stopped, match=f"stopped by SIGURG at step {step}"):
            learn(data, tmp_path / "twice", mode, stop)
    again = learn(data, tmp_path / "twice", mode)
    assert (again["files_sha256"], again["stops"]) == (facts["files_sha256"], 2)

    loaded = suite_of(data)
    base, before = loaded.probe(), loaded.evaluate()
    with applied(loaded.model, tmp_path / "once/1x"):
        assert check_applied("the expert", loaded.probe(), {"the base": base})["the base"] > 0
        metrics, samples = loaded.evaluate()
        encoded = loaded.validations[0].encoded
        losses = validation_losses(TOY, loaded.model, encoded, batch_size=7)
    assert loaded.evaluate() == before
    curve = pd.read_parquet(tmp_path / "once/curve.parquet")
    at_optimum = curve[curve["step"] == facts["t_star"]].iloc[0]
    assert domain_loss(losses) == pytest.approx(at_optimum["validation_loss"], rel=1e-5)
    assert [count for _, count in losses] == [1] * 60
    values = {row["benchmark"]: row["value"] for row in metrics}
    assert values["validation_loss"] == pytest.approx(-at_optimum["validation_loss"], rel=1e-5)
    assert values["integers"] > next(row["value"] for row in before[0] if row["benchmark"] == "integers")
    assert math.fsum(row["score"] for row in samples) / 60 == pytest.approx(values["validation_loss"])
    assert samples[0]["target"] == str(rows(60, seed=60)[0]["label"])


def test_what_merges_need_is_measured_of_another_modality(data: Path) -> None:
    loaded = suite_of(data)
    encoded, names_of = loaded.validations[0].encoded[:20], ["inner.weight", "outer.weight"]
    fisher = data_statistics.fisher(TOY, loaded.model, encoded, names_of, seed=1)
    gram = data_statistics.gram(TOY, loaded.model, encoded, names_of)
    assert all(float(fisher[name].abs().sum()) > 0 for name in names_of)
    inputs = torch.tensor([example.features for example in encoded]).double()
    torch.testing.assert_close(gram["inner.weight"], (inputs.T @ inputs / 20).float())
    loss = data_statistics.mean_loss(TOY, loaded.model, {}, encoded, batch_size=6)
    assert loss == pytest.approx(domain_loss(validation_losses(TOY, loaded.model, encoded, 20)), rel=1e-6)


def test_an_unknown_modality_is_refused_with_the_nearest() -> None:
    for part in (reading, learning, evaluating):
        with pytest.raises(UserError, match="modality casual_lm: there is no such modality; did you mean 'causal_lm'"):
            part.get("casual_lm")
    with pytest.raises(ValidationError, match="unknown modality 'casual_lm'; did you mean 'causal_lm'"):
        Base(model="o/b", revision="0" * 40, modality="casual_lm")
    assert Base(model="o/b", revision="0" * 40).modality in names()


@pytest.mark.parametrize(
    ("script", "parts"),
    [
        ("prepare_domain", {"reading"}),
        ("train_expert", {"reading", "learning"}),
        ("measure_expert", {"reading", "learning"}),
        ("evaluate", set(PARTS)),
        ("measure_interference", set()),
        ("merge_experts", set()),
    ],
)
def test_a_digest_covers_the_parts_of_a_modality_that_its_script_uses(script: str, parts: set[str]) -> None:
    for modality in ("*", "causal_lm"):
        files = with_imports([SCRIPTS / f"{script}.py"], modality)
        folder = SCRIPTS / "mergetime/modalities/causal_lm"
        assert {part for part in PARTS if folder / f"{part}.py" in files} == parts
    assert (code_digest(script, modality="other") == code_digest(script)) == (not parts)


SOURCES = {file.relative_to(SCRIPTS): file.read_text() for file in SCRIPTS.rglob("*.py")}
OUTSIDE = {
    file: text
    for file, text in SOURCES.items()
    if not file.is_relative_to("mergetime/modalities") and not file.is_relative_to("mergetime/demo")
}
# What results hold today is described in words of chats: columns, tables, the report and claims.
OF_RESULTS = ("results", "analysis", "measuring/columns.py", "packaging", "publishing", "papers", "report", "claims")


@pytest.mark.parametrize(
    "word",
    ["AutoModel", "AutoTokenizer", "apply_chat_template(", "CAUSAL_LM", "HFLM", "get_output_embeddings", "encode_chat"],
)
def test_what_only_causal_language_models_have_is_nowhere_else(word: str) -> None:
    assert not [str(file) for file, text in OUTSIDE.items() if word in text]


def test_no_stage_speaks_of_response_tokens() -> None:
    stages = {
        file: text
        for file, text in OUTSIDE.items()
        if not any(file.is_relative_to(f"mergetime/{place}") for place in OF_RESULTS)
    }
    assert len(stages) > 100
    assert not [str(file) for file, text in stages.items() if re.search(r"response\s+tokens?\b", text)]


def test_no_stage_asks_which_modality_it_has() -> None:
    condition = re.compile(r"modality\s*(==|!=|\bin\b|\bnot in\b)|match .*modality")
    assert not [str(file) for file, text in OUTSIDE.items() if condition.search(text)]
    imports = re.compile(rf"^\s*(from|import) mergetime\.modalities\.({'|'.join(names())})\b", re.MULTILINE)
    # A judge is a causal language model, whatever is judged.
    assert [file.name for file, text in OUTSIDE.items() if imports.search(text)] == ["judging.py"]
