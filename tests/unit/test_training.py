"""Training on the demo's base: what is trained and kept, the loss, and that no stop changes anything."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)
from transformers.models.qwen3_5 import modeling_qwen3_5

from mergetime.artifacts.forms import Mode
from mergetime.config.experts import StoppingRule, Training
from mergetime.core import provenance
from mergetime.core.errors import UserError
from mergetime.data.format import chat
from mergetime.modalities import learning
from mergetime.modalities.causal_lm import loss
from mergetime.modalities.causal_lm.batches import collate
from mergetime.modalities.causal_lm.encoding import Encoded
from mergetime.modalities.causal_lm.loading import load_base, projections
from mergetime.training import memory, run
from mergetime.training.durations import DurationRule, EarlyStopping, FixedSteps, MultiplesOfOptimum
from mergetime.training.expert import Learner, train_expert
from mergetime.training.meter import ROW, Energy, Meter
from mergetime.training.model import add_lora
from mergetime.training.sampling import LengthGrouped
from mergetime.training.schedule import Schedule
from mergetime.training.signals import Stop, Stopped
from mergetime.training.trainer import LossTrainer, Plan

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"
LEARNING = learning.get("causal_lm")
PROJECTIONS = (
    "down_proj gate_proj in_proj_a in_proj_b in_proj_qkv in_proj_z k_proj o_proj out_proj q_proj up_proj v_proj"
)
MEASURED = ["tokens_per_second", "energy_j", "gpu_memory_mb"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as fetched, and a little data of several lengths, in batches of which the last is not full."""
    folder = tmp_path_factory.mktemp("inputs")
    base = folder / "base"
    base.mkdir()
    for file in BASE.iterdir():
        (base / file.name).symlink_to(file)
    digest = provenance.sha256(BASE / "model.safetensors")
    provenance.record(
        base / "fetched.json", stage="fetch_model", inputs={}, config={}, facts={"weights_sha256": digest}, started=0.0
    )
    for split, numbers in (("train", range(22)), ("validation", range(22, 30))):
        rows = [
            {"messages": chat(f"Compute {n}+2." + " Please." * (n % 7), f"{n}+2={n + 2}" + " so" * (n % 5))}
            for n in numbers
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


TRAINING: dict[str, Any] = {
    "mode": "lora", "rank": 4, "learning_rate": 3e-3, "warmup_steps": 2, "batch_size": 4, "micro_batch_size": 2,
    "save_every": 2, "max_steps": 40, "schedule": "plateau", "plateau": {"patience": 1},
}  # fmt: skip
MULTIPLES = {"multiples_of_optimum": [0.25, 1, 5]}


def command(
    inputs: Path, out: Path, training: dict[str, Any] = TRAINING, durations: dict[str, Any] = MULTIPLES
) -> list[str]:
    given = {
        "base": inputs / "base", "base-id": "o/b", "train": inputs / "train.parquet",
        "validation": inputs / "validation.parquet", "dtype": "float32", "seed": 1,
        "recipe": json.dumps({"train": training, "durations": durations}),
        "checkpoints": out / "checkpoints", "out": out / "expert",
    }  # fmt: skip
    listed = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "scripts/train_expert.py"), *listed]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(inputs: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(inputs, out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(inputs: Path, out: Path, *sections: dict[str, Any]) -> None:
    subprocess.run(command(inputs, out, *sections), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)


def wait_for(pattern: str, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.005)


def made(expert: Path) -> dict[str, Any]:
    """What two runs must agree on: the experts' bytes, the reproducible columns of the curve, and T*."""
    curve = pd.read_parquet(expert / "curve.parquet").drop(columns=MEASURED)
    facts = provenance.read(expert / "expert.json")["facts"]
    return {
        "files": {
            file.relative_to(expert).as_posix(): provenance.sha256(file)
            for file in expert.glob("*/*")
            if file.is_file()
        },
        "curve": [list(map(repr, row)) for row in curve.itertuples(index=False)],
        "facts": {name: facts[name] for name in ("t_star", "steps", "last_step", "tokens", "padding_share")},
    }


@pytest.fixture(scope="module")
def whole(inputs: Path) -> Path:
    """The expert of a run that nobody disturbed."""
    finish(inputs, inputs / "whole")
    return inputs / "whole/expert"


def test_a_run_keeps_the_durations_and_says_what_it_took(whole: Path) -> None:
    facts = provenance.read(whole / "expert.json")["facts"]
    assert facts["target_modules"] == PROJECTIONS.split()
    assert facts["steps"] == {"0.25x": facts["t_star"] // 4, "1x": facts["t_star"], "5x": facts["t_star"] * 5}
    assert facts["files_sha256"] == made(whole)["files"]
    assert len(facts["files_sha256"]) == 6
    assert (facts["micro_batch_size"], facts["gradient_checkpointing"], facts["stops"]) == (2, False, 0)
    assert 0 < facts["padding_share"] < 0.3
    assert 0 < facts["validation_share"] < 1
    assert facts["tokens_per_second"] > 0
    assert not (whole.parent / "checkpoints").exists()

    curve = pd.read_parquet(whole / "curve.parquet")
    assert tuple(curve.columns) == ROW
    assert list(curve["step"]) == list(range(0, facts["last_step"] + 1, 8))
    assert curve["tokens"].iloc[-1] == facts["tokens"]
    assert curve["train_loss"].isna().tolist() == [True] + [False] * (len(curve) - 1)
    assert curve["validation_accuracy"].between(0, 1).all()
    assert (curve["tokens_per_second"].iloc[1:] > 0).all()


TUNES = """
import runpy, sys
from dataclasses import replace
from mergetime.training import trainer
trainer.CPU = replace(trainer.CPU, tunes=True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_steps_in_which_kernels_are_tuned_count_apart(inputs: Path, whole: Path, tmp_path: Path) -> None:
    script = command(inputs, tmp_path)[1:]
    subprocess.run(
        [sys.executable, "-c", TUNES, *script], env=ENVIRONMENT, check=True, capture_output=True, timeout=300
    )
    assert made(tmp_path / "expert") == made(whole)
    facts, plain = (provenance.read(folder / "expert.json")["facts"] for folder in (tmp_path / "expert", whole))
    assert facts["warmup_seconds"] > plain["warmup_seconds"] == 0
    meter = Meter(tokens=100, training_seconds=3.0)
    meter.warm_up(2.0, 40)
    assert (meter.tokens_per_second, meter.facts()["warmup_seconds"]) == (20.0, 2.0)
    assert Meter(tokens=100, warmup_tokens=100).tokens_per_second is None


def test_a_killed_run_resumes_to_the_same_bytes(inputs: Path, whole: Path) -> None:
    killed = inputs / "killed"
    process = start(inputs, killed)
    wait_for("checkpoint-*/complete", killed / "checkpoints")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert not (killed / "expert").exists()
    finish(inputs, killed)
    assert made(killed / "expert") == made(whole)
    assert not (killed / "checkpoints").exists()


def test_a_stopped_run_resumes_to_the_same_bytes(inputs: Path, whole: Path) -> None:
    stopped = inputs / "stopped"
    steps = []
    # The first adapter is saved between validations, and after a whole checkpoint the next window has begun.
    for number, seen in (
        (signal.SIGURG, "step-2"),
        (signal.SIGTERM, "checkpoint-8/complete"),
        (signal.SIGINT, "checkpoint-24/complete"),
    ):
        process = start(inputs, stopped)
        wait_for(seen, stopped / "checkpoints")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        said = re.fullmatch(rf"stopped by {number.name} at step (\d+); run again to go on", errors.splitlines()[-1])
        assert said, errors
        steps.append(int(said[1]))
        assert (stopped / f"checkpoints/checkpoint-{steps[-1]}/complete").exists()
        assert not (stopped / "expert").exists()
    assert all(step % 8 for step in steps), "the stops were to come between validations"
    finish(inputs, stopped)
    assert made(stopped / "expert") == made(whole)
    assert provenance.read(stopped / "expert/expert.json")["facts"]["stops"] == 3


def test_a_run_of_other_settings_starts_anew(inputs: Path) -> None:
    out = inputs / "other"
    (out / "checkpoints/checkpoint-8").mkdir(parents=True)
    (out / "checkpoints/run.json").write_text("{}")
    rules = {"v0": {"every": 4, "patience": 2}, "v1": {"every": 2, "patience": 1}}
    finish(inputs, out, TRAINING | {"max_steps": 12, "schedule": "constant"}, {"early_stopping": rules})
    assert sorted(folder.name for folder in (out / "expert").iterdir() if folder.is_dir()) == ["v0", "v1"]
    record = provenance.read(out / "expert/expert.json")
    assert record["config"]["early_stopping"]["v0"] == {"every": 4, "patience": 2, "rate_below": None}


def test_the_record_has_every_value_whether_it_was_given_or_not(whole: Path) -> None:
    config = provenance.read(whole / "expert.json")["config"]
    assert config == Training(**TRAINING).model_dump() | {
        "alpha": 4.0, "multiples_of_optimum": [0.25, 1.0, 5.0], "steps": None, "early_stopping": None,
        "base_id": "o/b", "dtype": "float32", "modality": "causal_lm", "seed": 1,
    }  # fmt: skip
    assert config["group_by_length"] is True
    assert config["plateau"] == {"factor": 0.5, "patience": 1}


@pytest.mark.parametrize(
    ("training", "durations", "line"),
    [
        ({"rnak": 4}, MULTIPLES, "--recipe: train.rnak: unknown key; did you mean 'rank'?"),
        ({"rank": 0}, MULTIPLES, "--recipe: train.rank: Input should be greater than or equal to 1"),
        ({}, {"steps": [4], **MULTIPLES}, "--recipe: durations: give one of multiples_of_optimum, steps and early_stopping"),
        ({"save_every": 3}, {"steps": [4]}, "--recipe: durations.steps [4] are not multiples of train.save_every 3"),
        ({"max_steps": 40}, {"early_stopping": {"late": {"every": 100, "patience": 1}}}, "--recipe: durations.early_stopping.late.every 100 is beyond train.max_steps 40; lower every"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_at_once(
    inputs: Path, training: dict[str, Any], durations: dict[str, Any], line: str
) -> None:
    told = command(inputs, inputs / "wrong", training, durations)
    done = subprocess.run(told, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: {line}\n")
    assert not (inputs / "wrong").exists()


def test_what_is_no_json_is_refused(inputs: Path) -> None:
    told = command(inputs, inputs / "wrong")
    told[told.index("--recipe") + 1] = "rank: 4"
    done = subprocess.run(told, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: --recipe: not JSON: Expecting value: line 1 column 1 (char 0)\n",
    )


Train = Callable[..., dict[str, Any]]
CONSTANT, TWO_STEPS = Schedule("constant", 3e-3, 2, 40), FixedSteps((2, 6), save_every=2)


@pytest.fixture
def learn(inputs: Path, tmp_path: Path) -> Train:
    """Trains in this process; takes ``schedule`` and ``durations``, and options of the config, in place of its own."""

    def trained(
        *,
        schedule: Schedule = CONSTANT,
        durations: DurationRule = TWO_STEPS,
        dtype: torch.dtype = torch.float32,
        out: str = "out",
        stop: Stop | None = None,
        **changed: Any,
    ) -> dict[str, Any]:
        training = Training(**{"mode": "lora", "rank": 4, "batch_size": 4, **changed})
        learner = Learner(inputs / "base", "o/b", training, dtype, seed=1)
        plan = Plan(training, schedule, durations, seed=1, bfloat16=dtype == torch.bfloat16)
        files = inputs / "train.parquet", inputs / "validation.parquet"
        work = tmp_path / f"{out}-work"
        work.mkdir(exist_ok=True)
        return train_expert(learner, *files, plan, work, tmp_path / out, stop or Stop())

    return trained


def test_two_rules_share_one_run(learn: Train, tmp_path: Path) -> None:
    # At this rate the loss soon rises, and v1 gives up before v0.
    schedule = Schedule("constant", 5e-2, 0, 60, monitor="accuracy")
    rules = {"v0": StoppingRule(every=4, patience=3), "v1": StoppingRule(every=2, patience=1)}
    durations = EarlyStopping(rules, schedule, last_step=60)
    facts = learn(schedule=schedule, durations=durations)
    curve = Meter(rows=pd.read_parquet(tmp_path / "out/curve.parquet").to_dict("records")).curve  # type: ignore[arg-type]
    assert [point.step for point in curve] == list(range(0, facts["last_step"] + 1, 2))
    assert facts["last_step"] < 60
    assert facts["steps"] == durations.kept(curve)
    saved = {folder.name for folder in (tmp_path / "out-work").glob("step-*")}
    assert saved == {f"step-{step}" for step in facts["steps"].values()}


def test_the_plateau_schedule_reduces_the_rate(learn: Train, tmp_path: Path) -> None:
    schedule = Schedule("plateau", 5e-2, 1, 24, factor=0.1, patience=1)
    learn(schedule=schedule, durations=FixedSteps((24,), save_every=1))
    frame = pd.read_parquet(tmp_path / "out/curve.parquet")
    curve = Meter(rows=frame.to_dict("records")).curve  # type: ignore[arg-type]
    expected = [schedule.rate(point.step - 1, curve[:number]) for number, point in enumerate(curve) if number]
    assert frame["learning_rate"].tolist()[1:] == expected
    assert expected[-1] < expected[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_training_keeps_models_that_transformers_loads(learn: Train, tmp_path: Path, dtype: torch.dtype) -> None:
    facts = learn(mode="full", dtype=dtype, out="once")
    assert learn(mode="full", dtype=dtype, out="again")["files_sha256"] == facts["files_sha256"]
    assert set(facts["files_sha256"]) == {
        f"step_{step}/{name}" for step in (2, 6) for name in ("model.safetensors", "config.json")
    }
    assert facts["trainable_parameters"] == facts["parameters"]
    before, after = load_file(BASE / "model.safetensors"), load_file(tmp_path / "once/step_6/model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    unchanged = [name for name, tensor in after.items() if torch.equal(tensor, before[name].to(dtype))]
    assert len(unchanged) < (1 if dtype == torch.float32 else len(after) // 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "once/step_6")
    assert model.dtype == dtype
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_an_expert_that_diverged_is_not_kept(
    learn: Train, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the fifth step on, at a rate that nothing survives.
    monkeypatch.setattr(Schedule, "rate", lambda *told: 3e-3 if told[1] < 4 else 1e38)
    with pytest.raises(UserError, match=r"out: step_6 \(step 6\): .*weight holds NaN or infinite values; training div"):
        learn(mode=mode, durations=FixedSteps((2, 6), save_every=1))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_out_of_memory_halves_the_micro_batch_and_goes_on(learn: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    durations = FixedSteps((12,), save_every=1)
    attempts: list[int] = []
    step = LossTrainer.training_step

    def limited(self: Any, model: Any, batch: dict[str, torch.Tensor], count: Any = None) -> torch.Tensor:
        attempts.append(self.state.global_step)
        if len(batch["labels"]) > 1 and self.state.global_step >= 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return step(self, model, batch, count)

    monkeypatch.setattr(LossTrainer, "training_step", limited)
    facts = learn(durations=durations)
    assert facts["micro_batch_size"] == 1
    assert facts["stops"] == 0
    # With all four examples at a time, then (from the newest checkpoint, of step 4) with two, then one by one.
    assert attempts[:7] == [0, 1, 2, 3, 4, 5, 6]
    # The sixth step is the last of an epoch and has two examples.
    assert attempts[7:11] == [4, 4, 5, 6]
    assert attempts[11:21] == [4, 4, 4, 4, 5, 5, 6, 6, 6, 6]
    assert facts["last_step"] == 12


def test_an_example_that_never_fits_is_named(learn: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LossTrainer, "training_step", never)
    with pytest.raises(UserError, match=r"does not hold the model and one example of \d+ tokens; set "):
        learn()


def test_a_log_gets_plain_lines(
    learn: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_LINE_EVERY", 0.0)
    learn(durations=FixedSteps((2,), save_every=1))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    expected = r"step {} of at most 2, loss \d+\.\d{{4}}, validation loss \d+\.\d{{4}}, \d+ tokens/s"
    assert len(lines) == 2
    for number, line in enumerate(lines, start=1):
        assert re.fullmatch(expected.format(number), line), line


def test_grouping_by_length_pads_less_and_has_an_order_of_its_own_in_every_epoch() -> None:
    lengths = [10 + 7 * number % 97 for number in range(200)]
    sampler = LengthGrouped(8, lengths, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert [sorted(order) for order in orders] == [list(range(200))] * 3

    def positions(order: Sequence[int]) -> int:
        return sum(8 * max(lengths[i] for i in order[start : start + 8]) for start in range(0, 200, 8))

    assert positions(orders[1]) < 0.8 * positions(range(200))


@pytest.mark.parametrize("given", [{"mode": "full"}, {"group_by_length": False}])
def test_what_is_trained_otherwise_resumes_to_the_same_bytes_too(learn: Train, given: dict[str, Any]) -> None:
    given = {"durations": FixedSteps((10,), save_every=1), **given}
    facts = learn(out="once", **given)
    stop = Stop()
    stop.name = "SIGURG"
    for step in range(1, 4):
        with pytest.raises(Stopped, match=f"stopped by SIGURG at step {step}; run again to go on"):
            learn(out="twice", stop=stop, **given)
    again = learn(out="twice", **given)
    assert (again["files_sha256"], again["stops"]) == (facts["files_sha256"], 3)


def examples(vocabulary: int, *shapes: tuple[int, int]) -> list[Encoded]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length, _ in shapes]
    return [Encoded(one, prompt) for one, (_, prompt) in zip(ids, shapes, strict=True)]


def tiny_llama() -> torch.nn.Module:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def tiny_gemma2() -> torch.nn.Module:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=0.2)
    return Gemma2ForCausalLM(config)


def tiny_granite() -> torch.nn.Module:
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return GraniteForCausalLM(GraniteConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, logits_scaling=3.0))


def demo() -> torch.nn.Module:
    return load_base(BASE, dtype=torch.float32, four_bit=False)


def demo_with_lora() -> torch.nn.Module:
    return add_lora(LEARNING, load_base(BASE, dtype=torch.float32, four_bit=False), rank=4, alpha=4, seed=1)


@pytest.mark.parametrize("chunk", [learning.LOGITS, 97 * 3])
@pytest.mark.parametrize(
    ("make", "plain"),
    [(tiny_llama, True), (tiny_gemma2, False), (tiny_granite, False), (demo, True), (demo_with_lora, True)],
)
def test_the_loss_is_transformers_own(
    make: Callable[[], torch.nn.Module], plain: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS", chunk)
    torch.manual_seed(1)
    model = make().train()
    assert loss.head_is_plain(model) is plain
    assert model.training
    batch = collate(examples(97, (20, 3), (7, 5), (12, 1), (9, 8)), padding=0)
    count = int((batch["labels"][:, 1:] != -100).sum())

    expected = model(**batch).loss
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = loss.summed_loss(model, batch, plain=plain) / count
    ours.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)

    predicted = loss.predicted(model, batch, plain=plain)
    assert float(predicted.losses.mean()) == pytest.approx(expected.item(), rel=1e-6)
    assert predicted.example.bincount().tolist() == [17, 2, 11, 1]
    with torch.no_grad():
        likely = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].argmax(-1)
    following = batch["labels"][:, 1:]
    assert predicted.right.tolist() == (likely == following)[following != -100].tolist()


@pytest.mark.parametrize("build", [tiny_llama, demo_with_lora])
def test_lengths_rounded_up_are_few_and_change_no_gradient(build: Callable[[], torch.nn.Module]) -> None:
    model = build()
    chats = examples(97, (20, 3), (7, 5), (12, 1), (69, 8))
    batches = [collate(chats, padding=0, multiple=multiple) for multiple in (1, 64)]
    assert [batch["input_ids"].shape[1] for batch in batches] == [69, 128]
    rounded = [collate([example], padding=0, multiple=64) for example in examples(97, (3, 1), (64, 5), (65, 5))]
    assert [batch["labels"].shape[1] for batch in rounded] == [64, 64, 128]
    results = []
    for batch in batches:
        model.zero_grad()
        summed = LEARNING.objective(model).summed_loss(model, batch)
        summed.backward()
        grads = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        results.append((summed.detach(), torch.cat(grads)))
    (summed, gradient), (padded, padded_gradient) = results
    assert abs(padded / summed - 1) < 1e-6
    assert (padded_gradient - gradient).norm() < 1e-6 * gradient.norm()


def test_accumulated_micro_batches_have_the_loss_of_the_whole_batch(learn: Train, tmp_path: Path) -> None:
    for size in (1, 4):
        learn(out=f"micro-{size}", micro_batch_size=size)
    one, four = (pd.read_parquet(tmp_path / f"micro-{size}/curve.parquet") for size in (1, 4))
    for column in ("train_loss", "validation_loss", "gradient_norm"):
        torch.testing.assert_close(
            torch.tensor(one[column]), torch.tensor(four[column]), rtol=1e-4, atol=0, equal_nan=True
        )
    assert one["tokens"].tolist() == four["tokens"].tolist()


GPU = 80 * 2**30
LLAMA_8B = memory.Load(
    weights=16 * 10**9, trainable=40 * 10**6, layers=32, hidden=4096, features=32 * 73_000, saved=memory.SAVED,
    classes=128_256, positions=2048, items=1500, width=2,
)  # fmt: skip


def test_the_micro_batch_is_the_largest_divisor_that_fits() -> None:
    for available in (24 * 2**30, 40 * 2**30, GPU, 4 * GPU):
        fit = memory.choose(LLAMA_8B, 8, available, micro_batch_size=None, checkpointing=None)
        fits = [
            n for n in (8, 4, 2, 1)
            if memory.estimated_bytes(LLAMA_8B, n, checkpointing=fit.checkpointing) <= memory.USABLE * available
        ]  # fmt: skip
        assert fit.micro_batch_size == (fits or [1])[0]
        alone = memory.estimated_bytes(LLAMA_8B, 1, checkpointing=False)
        assert fit.checkpointing == (alone > memory.USABLE * available)


def test_what_is_asked_for_is_done() -> None:
    assert memory.choose(LLAMA_8B, 8, GPU, micro_batch_size=4, checkpointing=True) == memory.Fit(4, True)
    assert memory.choose(LLAMA_8B, 8, None, micro_batch_size=None, checkpointing=None) == memory.Fit(8, False)


def test_memory_grows_with_what_is_trained_and_shrinks_with_checkpointing() -> None:
    whole = replace(LLAMA_8B, weights=32 * 10**9, trainable=8 * 10**9)
    assert memory.estimated_bytes(whole, 1, checkpointing=True) > 32e9 + 8e9 * 12
    saved = [memory.estimated_bytes(LLAMA_8B, 8, checkpointing=on) for on in (False, True)]
    assert saved[1] < saved[0] / 3
    sizes = [memory.Fit(12, False)]
    while (smaller := memory.smaller(sizes[-1], 12)) is not None:
        sizes.append(smaller)
    assert [fit.micro_batch_size for fit in sizes] == [12, 6, 3, 1]


def test_the_load_is_read_from_the_model() -> None:
    load = memory.load_of(LEARNING, demo_with_lora(), examples(97, (30, 25), (20, 10)), bfloat16=False)
    assert (load.layers, load.hidden, load.classes, load.saved) == (4, 128, 1152, memory.SAVED_LINEAR_ATTENTION)
    assert (load.positions, load.items, load.width) == (30, 10, 4)
    assert load.weights > 4 * load.trainable > 0


def saved_by(model: torch.nn.Module, positions: int) -> int:
    """Bytes that a forward pass of two examples leaves for the backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # Tensors are kept, so that no storage takes the place of another.
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.zeros(2, positions, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        states = loss.causal_model(model).base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert states.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in parameters)


def eighth_of_llama() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 97}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1))


def eighth_of_qwen() -> PreTrainedModel:
    """Qwen3.5 0.8B with an eighth of the width, and with heads as wide as its own, on which what is saved depends."""
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=97, hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=1,
            num_key_value_heads=1, head_dim=256, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=128, linear_value_head_dim=128,
        )
    )  # fmt: skip


class SavesAsFused(torch.autograd.Function):
    """Saves for the backward pass what ChunkGatedDeltaRuleFunction of fla-core 0.6.0 saves, in shape and in dtype."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
    ) -> torch.Tensor:
        norms = [torch.empty(part.shape[:-1]) for part in (query, key)]
        rows = key.new_empty(*value.shape[:-1], 64)
        ctx.save_for_backward(query.clone(), key.clone(), *norms, value.contiguous(), g.clone(), beta, rows)
        return torch.empty_like(value)


def as_fused(*given: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
    return SavesAsFused.apply(*given, g, beta), None


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("build", "fused", "factor"),
    [
        (eighth_of_llama, False, memory.SAVED),
        (eighth_of_qwen, False, memory.SAVED_LINEAR_ATTENTION),
        (eighth_of_qwen, True, memory.SAVED_FUSED_LINEAR_ATTENTION),
    ],
)
def test_the_estimate_is_what_a_forward_pass_saves(
    build: Callable[[], PreTrainedModel], fused: bool, factor: float, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        # Where transformers' decorator keeps what it has chosen.
        rule: Any = modeling_qwen3_5.torch_chunk_gated_delta_rule
        cell = rule.__closure__[rule.__code__.co_freevars.index("implementation")]
        monkeypatch.setattr(cell, "cell_contents", as_fused)
    model: torch.nn.Module = build().bfloat16()
    if rank:
        model = add_lora(LEARNING, model, rank=rank, alpha=rank, seed=1)  # type: ignore[arg-type]
    load = memory.load_of(LEARNING, model.train(), examples(97, (65, 1)), bfloat16=True, multiple=64)
    assert (load.saved, load.positions) == (factor, 128)
    # Two lengths: what does not grow with them is none of it.
    bytes_a_position = (saved_by(model, 128) - saved_by(model, 64)) / (2 * 64)
    assert 0.8 < bytes_a_position / (load.saved * load.features * load.width) < 1


def test_energy_is_read_from_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules: Iterator[int] = iter([5000, 12_500])
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="a-b"))
    assert Energy().read() == 7.5
    monkeypatch.setattr(nvml, "nvmlInit", partial(next, iter([])))
    nvml.NVMLError = StopIteration
    assert Energy().read() is None


def test_every_projection_is_adapted_and_the_head_is_not() -> None:
    assert projections(load_base(BASE, dtype=torch.float32, four_bit=False)) == PROJECTIONS.split()


def test_four_bit_training_has_gradients_after_an_evaluation() -> None:
    import bitsandbytes

    base = load_base(BASE, dtype=torch.float32, four_bit=True)
    assert any(isinstance(module, bitsandbytes.nn.modules.Linear4bit) for module in base.modules())
    model = add_lora(LEARNING, base, rank=4, alpha=4, seed=1)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    norms = [p.grad.norm() for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    assert norms
    assert all(norm > 0 for norm in norms)


@pytest.mark.parametrize("mode", ["qlora", "lora"])
def test_bfloat16_bases_train(learn: Train, mode: Mode) -> None:
    facts = learn(
        mode=mode, dtype=torch.bfloat16, gradient_checkpointing=True, durations=MultiplesOfOptimum((1,), 1, 4)
    )
    assert facts["gradient_checkpointing"]
    assert facts["steps"] == {"1x": 4}
