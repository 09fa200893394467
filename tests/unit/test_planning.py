"""The plan of a study: its cost model against figures by hand, sizes from headers, jobs from a real dry run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import save_file

from mergetime.config import reading
from mergetime.config.evaluation import Benchmark
from mergetime.config.experts import Durations, StoppingRule, Training
from mergetime.config.sources import Base, Domain
from mergetime.config.study import PlanAssumptions
from mergetime.core.errors import UserError
from mergetime.planning import costs, job_times, jobs, order, prices, rates, recorded, report, sizes, storage, workloads
from mergetime.planning.jobs import DryRun, Job

ROOT = Path(__file__).parents[2]
PEAK = costs.Rate(312e12, 2000e9)
TABLE = rates.load(ROOT / "config/plan/rates.yaml")
MULTIPLES = Durations(multiples_of_optimum=[0.25, 1, 5])
HASH = "0" * 40
SMOKE = ["--configfile", "config/smoke.yaml"]


# Costs


def test_what_a_token_costs() -> None:
    assert costs.forward_operations(4_000_000_000, 10) == 8e10
    assert costs.training_operations(4_000_000_000, 1000, every_weight=False) == 4 * 4e9 * 1000
    assert costs.training_operations(4_000_000_000, 1000, every_weight=True) == 6 * 4e9 * 1000
    recomputed = costs.training_operations(4_000_000_000, 1000, every_weight=False, gradient_checkpointing=True)
    assert recomputed == 6 * 4e9 * 1000


def test_a_gpu_reaches_a_share_of_its_peaks() -> None:
    rate = costs.reached(PEAK, 0.3, "bfloat16")
    assert rate.operations_per_s == pytest.approx(312e12 * 0.3)
    assert rate.bytes_per_s == pytest.approx(2000e9 * 0.3)
    assert costs.reached(PEAK, 0.3, "float32").operations_per_s == pytest.approx(312e12 * 0.3 / 16)
    assert costs.reached(PEAK, 0.3, "float32").bytes_per_s == rate.bytes_per_s
    assert costs.reached(PEAK, 0.3, "float32", gpu=False).operations_per_s == rate.operations_per_s


def test_small_batches_wait_for_the_weights() -> None:
    rate = costs.Rate(operations_per_s=1e14, bytes_per_s=1e12)
    # 100 items are four batches of 32: 8 GB at 1 TB/s is 8 ms a token, 32 x 8e9 operations are 2.56 ms.
    slow = costs.generation_seconds(4_000_000_000, 8e9, items=100, new_tokens=10, batch_size=32, rate=rate)
    assert slow == pytest.approx(4 * 10 * 0.008)
    fast = costs.generation_seconds(4_000_000_000, 8e9, items=1024, new_tokens=10, batch_size=1024, rate=rate)
    assert fast == pytest.approx(10 * 1024 * 8e9 / 1e14)


def test_bytes_of_an_adapter() -> None:
    assert costs.adapter_bytes(2_031_250, 16) == 130_000_000


def test_merging_goes_by_the_entries() -> None:
    assert costs.merge_seconds(850e6) == pytest.approx(4 + 10)


@pytest.mark.parametrize(
    ("examples", "epochs", "max_steps", "expected"),
    [(10_000, 1.0, 20_000, 1200), (10_000, 3.0, 20_000, 3800), (10, 1.0, 20_000, 200), (10_000, 9.0, 20_000, 4000)],
)
def test_the_guess_of_the_optimum_is_a_validated_step(
    examples: int, epochs: float, max_steps: int, expected: int
) -> None:
    train = Training(batch_size=8, save_every=50, max_steps=max_steps)
    assert costs.guessed_optimum(train, [0.25, 5], examples, epochs) == expected


def test_where_a_run_ends() -> None:
    train = Training(save_every=50, max_steps=20_000)
    assert costs.last_step(train, MULTIPLES, 1200) == 6000
    assert costs.last_step(train, MULTIPLES, 5000) == 20_000
    assert costs.last_step(train, Durations(steps=[100, 700]), 1200) == 700
    assert costs.validations(train, MULTIPLES, 6000) == 31


def test_where_early_stopping_ends() -> None:
    plateau = Training(save_every=50, schedule="plateau", learning_rate=1e-4)
    patience = Durations(early_stopping={"v": StoppingRule(every=100, patience=5)})
    assert costs.last_step(plateau, patience, 1200) == 1700
    assert costs.validations(plateau, patience, 1700) == 18
    # Below 1e-5 after four halvings, each after three validations that bring nothing.
    rate = Durations(early_stopping={"r": StoppingRule(every=50, rate_below=1e-5)})
    assert costs.last_step(plateau, rate, 1200) == 1200 + 4 * 3 * 50


def test_a_run_keeps_what_may_become_an_expert() -> None:
    train = Training(save_every=50, max_steps=20_000)
    assert costs.experts_at_once(train, Durations(steps=[100, 700]), 400, 700) == 3
    assert 3 <= costs.experts_at_once(train, MULTIPLES, 1200, 6000) < 6000 // 50


# Rates

H200 = rates.Workload("NVIDIA H200", "torch", "causal_lm", "bfloat16", 752_000_000, "lora")
"""What the figure of training on an H200 was measured with."""


def _plan(**keys: Any) -> PlanAssumptions:
    return PlanAssumptions.model_validate({"gpu": "NVIDIA H200"} | keys)


def test_a_measured_rate_is_used_where_it_was_measured() -> None:
    found = rates.pace(TABLE, _plan(), "train", H200)
    assert found.operations_per_s == pytest.approx(2015 * 4 * 752e6)
    assert found.source.startswith("measured: 2,015 tokens/s of Qwen3.5 0.8B on NVIDIA H200, 2026-11-26")


@pytest.mark.parametrize("other", [{"parameters": 4_000_000_000}, {"mode": "qlora"}])
def test_another_size_or_mode_goes_by_operations_and_says_so(other: dict[str, Any]) -> None:
    found = rates.pace(TABLE, _plan(), "train", replace(H200, **other))
    assert found.operations_per_s == pytest.approx(2015 * 4 * 752e6)
    assert found.source.startswith("scaled from: 2,015 tokens/s")


def test_where_nothing_was_measured_the_share_of_another_gpu_is_taken() -> None:
    a100 = replace(H200, chip="A100-80GB")
    found = rates.pace(TABLE, _plan(gpu="A100-80GB"), "train", a100)
    assert found.operations_per_s == pytest.approx(2015 * 4 * 752e6 * 312 / 989)
    assert found.source.startswith("assumed: 0.61% of peak, scaled from: 2,015 tokens/s of Qwen3.5 0.8B on NVIDIA H200")
    # Reading passes over whole texts, as training does.
    read = rates.pace(TABLE, _plan(), "read", H200)
    assert read.operations_per_s == pytest.approx(2015 * 4 * 752e6)
    assert read.source.startswith("assumed: 0.61% of peak, ")


def test_kernels_without_a_figure_are_an_assumption() -> None:
    found = rates.pace(TABLE, _plan(kernels="fused"), "train", replace(H200, kernels="fused"))
    assert found.operations_per_s == pytest.approx(989e12 * 0.3)
    assert found.source == "assumed: 30% of peak (plan.utilization)"


def test_a_cpu_takes_nothing_from_a_gpu() -> None:
    cpu = rates.Workload(rates.CPU, "torch", "causal_lm", "float32", 959_288, "lora")
    assert rates.pace(TABLE, _plan(), "train", cpu).operations_per_s == pytest.approx(3525 * 4 * 959_288)
    bare = TABLE.model_copy(update={"figures": [figure for figure in TABLE.figures if figure.chip != rates.CPU]})
    assert rates.pace(bare, _plan(), "train", cpu).source.startswith("assumed: 30% of peak")


def test_the_most_similar_figure_counts() -> None:
    figure = next(figure for figure in TABLE.figures if figure.chip == "NVIDIA H200")
    large = figure.model_copy(update={"parameters": 4_000_000_000, "figure": 700.0})
    exact = figure.model_copy(update={"mode": "qlora", "figure": 500.0})
    table = TABLE.model_copy(update={"figures": [figure, large, exact]})

    def used(**other: Any) -> float:
        found = rates.nearest(table, "train", replace(H200, **other), chips=["NVIDIA H200"])
        assert found is not None
        return found.figure

    assert [used(), used(parameters=3_000_000_000), used(parameters=3_000_000_000, mode="qlora")] == [2015, 700, 500]


def test_a_gpu_that_nobody_knows_needs_its_peaks() -> None:
    with pytest.raises(
        UserError, match=r"plan\.gpu: 'B200' is not among the chips of config/plan/rates\.yaml \(NVIDIA"
    ):
        rates.peak(TABLE, _plan(gpu="B200"), "B200")
    given = _plan(gpu="B200", teraflops=2250, bandwidth_gb_s=8000)
    assert rates.peak(TABLE, given, "B200") == costs.Rate(2250e12, 8000e9)


LINE = "{stage: train, figure: 1, unit: tokens/s, chip: C, mode: lora, parameters: 5, date: 2026-01-02, command: snakemake}"


@pytest.mark.parametrize(
    ("wrong", "right", "line"),
    [
        ("unit: tokens/s", "unit: s a job", "figures.0: unit of stage train is 'tokens/s', not 's a job'"),
        ("parameters: 5, ", "", "figures.0: parameters: a rate of stage train needs the size of the model"),
        ("mode: lora, ", "", "figures.0: mode: a rate of stage train needs one of lora, qlora and full"),
        (
            "train",
            "generate",
            "figures.0: batch_size: a rate of stage generate needs the batch that it was reached with",
        ),
        ("chip: C", "chip: D", "figures.0.chip: 'D' is not among chips; add its peaks there"),
        ("2026-01-02", "soon", "figures.0.date: "),
        ("figure: 1", "figures: 1", "figures.0.figures: unknown key; did you mean 'figure'?"),
    ],
)
def test_a_wrong_table_of_rates_is_one_line(tmp_path: Path, wrong: str, right: str, line: str) -> None:
    file = tmp_path / "rates.yaml"
    chips = "chips: {C: {teraflops: 1, bandwidth_gb_s: 1}}\nfigures:\n"
    file.write_text(f"{chips}  - {LINE}\n")
    assert rates.load(file).figures[0].figure == 1
    file.write_text(f"{chips}  - {LINE.replace(wrong, right, 1)}\n")
    with pytest.raises(UserError) as caught:
        rates.load(file)
    assert f"{file}: {line}" in str(caught.value)
    assert "\n" not in str(caught.value)


# Sizes


def _checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    shapes = {
        "model.language_model.embed_tokens.weight": (10, 4),
        "model.language_model.layers.0.mlp.up_proj.weight": (6, 4),
        "model.language_model.layers.0.mlp.down_proj.weight": (4, 6),
        "model.language_model.layers.0.linear_attn.conv1d.weight": (8, 1, 4),
        "model.language_model.layers.0.input_layernorm.weight": (4,),
        "model.visual.blocks.0.attn.proj.weight": (50, 50),
        "mtp.layers.0.mlp.up_proj.weight": (60, 40),
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_headers_tell_the_language_model_apart(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _checkpoint(folder)
    assert sizes.read_header(folder / "model.safetensors")["mtp.layers.0.mlp.up_proj.weight"] == (60, 40)
    found = sizes.sizes_of("b", Base(model="o/b", revision=HASH), [tmp_path / "none", folder], lora=True)
    assert found.parameters == 40 + 24 + 24 + 32 + 4
    assert found.matrix_parameters == 48
    assert found.adapter_parameters == 20
    assert found.gram_entries == 16 + 36
    assert found.stored_bytes == (folder / "model.safetensors").stat().st_size


def test_a_model_that_is_not_fetched_needs_its_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bases\.b\.parameters: o/b is not fetched yet"):
        sizes.sizes_of("b", Base(model="o/b", revision=HASH), [tmp_path], lora=True)
    with pytest.raises(UserError, match=r"bases\.b\.adapter_parameters"):
        sizes.sizes_of("b", Base(model="o/b", revision=HASH, parameters=100), [tmp_path], lora=True)
    given = Base(model="o/b", revision=HASH, parameters=100, adapter_parameters=7)
    assert sizes.sizes_of("b", given, [tmp_path], lora=True).stored_bytes == 200


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\0\0\x10\0\0\0\0\0" + b"[" * 2**20])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match="no safetensors file"):
        sizes.read_header(file)


# Workloads


def test_items_of_a_benchmark(tmp_path: Path) -> None:
    gsm8k = Benchmark(task="gsm8k", dataset="openai/gsm8k", revision=HASH, metric="exact_match,none")
    known = workloads.items_of(gsm8k, "test", tmp_path, None)
    assert (known.items, known.prompt_tokens, known.new_tokens, known.source) == (1319, 900, 256, "known size")
    short = gsm8k.model_copy(update={"limit": 100, "shots": 0, "max_new_tokens": 512})
    assert (workloads.items_of(short, "test", tmp_path, None).items) == 100
    assert (workloads.items_of(short, "test", tmp_path, None).prompt_tokens) == 150
    assert (workloads.items_of(short, "test", tmp_path, None).new_tokens) == 512
    fetched = tmp_path / f"resources/benchmarks/openai/gsm8k/None/{HASH}"
    fetched.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["?"] * 7}), fetched / "test.parquet")
    assert workloads.items_of(gsm8k, "test", tmp_path, None).items == 7


def test_likelihoods_are_one_an_answer_and_language(tmp_path: Path) -> None:
    arc = Benchmark(
        task="arc_{config}",
        dataset="alexandrainst/m_arc",
        revision=HASH,
        config=["de", "fr"],
        metric="acc_norm,none",
        chance=0.25,
    )
    asked = workloads.items_of(arc, "test", tmp_path, None)
    assert (asked.items, asked.options, asked.new_tokens) == (2340, 4, 0)


def test_own_tasks_say_how_they_are_run() -> None:
    own = workloads.read_task(ROOT / "config/tasks/demo", "demo_arithmetic_validation")
    assert (own["test_split"], own["output_type"], own["generation_kwargs"]["max_gen_toks"]) == (
        "validation",
        "generate_until",
        48,
    )
    assert workloads.read_task(ROOT / "config/tasks/demo", "gsm8k") == {}


def test_tokens_are_counted_where_data_is_prepared(tmp_path: Path) -> None:
    domain = Domain(dataset="o/d", revision=HASH, format="aya", train=2, validation=1, max_tokens=300)
    assert workloads.tokens_of(domain, tmp_path, PlanAssumptions()) == workloads.Tokens(300, 300, False)
    pq.write_table(pa.table({"tokens": [10, 20]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"tokens": [8]}), tmp_path / "validation.parquet")
    assert workloads.tokens_of(domain, tmp_path, PlanAssumptions()) == workloads.Tokens(15, 8, True)


def test_recorded_runs_replace_the_guess(tmp_path: Path) -> None:
    study = reading.load(ROOT / "config/demo.yaml")
    assert workloads.run_of(study, tmp_path, "b", "math", "1", "default").source == "guessed"
    folder = tmp_path / "experts/b/math/seed-2"
    folder.mkdir(parents=True)
    facts = {"t_star": 80, "last_step": 400, "tokens": 1000, "tokens_per_second": 10.0, "validation_share": 0.5}
    (folder / "expert.json").write_text(json.dumps({"facts": facts, "wall_s": 1.0}))
    assert workloads.run_of(study, tmp_path, "b", "math", "2", "default") == workloads.RunLength(
        80, 400, "recorded", 0.5
    )
    assert workloads.run_of(study, tmp_path, "b", "math", "1", "default") == workloads.RunLength(80, 400, "other seeds")


# Jobs

DRY = """
[Sun Nov 22 13:10:05 2026]
rule merge_pool_0:
    input: base.json, a.safetensors
    output: m/task_vector.safetensors, m/merged.json
    jobid: 1
    benchmark: benchmarks/s/merge_pool/b.jsonl
    reason: Missing output files: m/merged.json
    wildcards: base=b, pool=p
    resources: tmpdir=/tmp
localrule evaluate_merged_12:
    input: m/task_vector.safetensors
    output: e/x/test.parquet, e/x/test.samples.parquet, e/x/test.json, e/y/test.parquet
    wildcards: base=b, pool=p
Would remove temporary output m/task_vector.safetensors
rule all:
    input: e/x/test.parquet
    jobid: 0
"""


def test_a_dry_run_is_read() -> None:
    found, removed = jobs.parse(DRY)
    merge, evaluate = found
    assert merge.inputs == ("base.json", "a.safetensors")
    assert merge.benchmark == "benchmarks/s/merge_pool/b.jsonl"
    assert merge.wildcards == {"base": "b", "pool": "p"}
    assert (merge.stage, evaluate.stage) == ("merge", "evaluate")
    assert (evaluate.stem, evaluate.split, evaluate.folders) == ("evaluate_merged", "test", 2)
    assert removed == {"m/task_vector.safetensors"}


def test_stages_go_by_the_rule() -> None:
    names = {
        "make_demo_hub": "fetch", "make_table": "publish", "describe_study": "collect", "tidy": "other",
        "judge_merged_0": "judge", "judge_claims": "compare", "compare_published": "compare", "audit_published": "compare",
    }  # fmt: skip
    assert {name: Job(name, (), ("x",)).stage for name in names} == names


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study as cloned, with its base's size in the config."""
    folder = tmp_path_factory.mktemp("smoke")
    for name in ("Snakefile", "rules", "scripts", "config", "containers", "envs", "profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    file = folder / "config/smoke.yaml"
    study = yaml.safe_load(file.read_text())
    for base in study["bases"].values():
        base |= {"parameters": 1_000_000, "adapter_parameters": 10_264}
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return folder


def _planned(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/plan_study.py", *SMOKE, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def _rows(text: str) -> dict[str, list[str]]:
    table = text.split("\n\n")[1]
    return {line[:8].strip(): line[8:].split() for line in table.splitlines()[1:]}


def test_the_smoke_study_is_planned(smoke: Path) -> None:
    done = _planned(smoke)
    assert done.returncode == 0, done.stderr
    rows = _rows(done.stdout)
    assert rows["train"][:3] == ["2", "0", "2"]
    # 5 pools: a job for their 5 methods and one for their 2 candidates; 5 soups and 5 choices.
    assert (rows["merge"][0], rows["select"][0]) == ("10", "10")
    assert "functions: 100 items (known size)" in done.stdout
    assert "GPU" in done.stdout
    assert "nothing yet" in done.stdout
    assert not (smoke / "results").exists()
    part = _planned(smoke, "--target", "results/smoke/data/safety/train.parquet")
    assert int(_rows(part.stdout)["in all"][0]) < int(rows["in all"][0])
    assert "train" not in _rows(part.stdout)


def test_what_is_there_is_done(smoke: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smoke, tmp_path / "begun"))
    described = ["snakemake", "results/smoke/study.json", "--cores", "1", *SMOKE]
    subprocess.run(described, cwd=folder, capture_output=True, check=True)
    rows = _rows(_planned(folder, "--target", "interference").stdout)
    assert rows["collect"][:3] == ["2", "1", "1"]


def test_snakemake_plans_too(smoke: Path) -> None:
    done = subprocess.run(
        ["snakemake", "plan", "--cores", "1", *SMOKE, "--config", "plan_for=interference", "seeds=[1,2]"],
        cwd=smoke,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("interference of study smoke\n")
    assert _rows(done.stdout)["train"][0] == "4"


def test_an_unknown_target_is_one_line(smoke: Path) -> None:
    done = _planned(smoke, "--target", "table_99")
    assert done.returncode == 1
    assert done.stderr.startswith("error: table_99: MissingRuleException: No rule to produce table_99")
    assert done.stderr.count("\n") == 1
    lacking = _planned(smoke, "--target", "table_5")
    assert lacking.stderr == "error: table_5: table_5 needs a third base; this study has 1\n"


def test_a_wrong_setting_is_one_line(smoke: Path) -> None:
    assert "error: --config seeds: give KEY=JSON" in _planned(smoke, "--config", "seeds").stderr
    assert "unknown key; did you mean 'seeds'?" in _planned(smoke, "--config", "seed=[1]").stderr


def test_no_torch_is_imported(smoke: Path) -> None:
    code = (
        "import runpy, sys; sys.argv = ['plan', '--help']\n"
        "try: runpy.run_path('scripts/plan_study.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=smoke, env={"PYTHONPATH": "scripts"}).returncode == 0


# Prices


def _evaluate(number: int, split: str = "test") -> Job:
    files = (
        f"results/smoke/evaluations/x{number}/{split}.parquet",
        f"results/smoke/evaluations/x{number}/{split}.json",
    )
    benchmark = f"benchmarks/smoke/evaluate_expert/b/{split}-{number}.jsonl"
    return Job(f"evaluate_expert_{number}", (), files, {"base": "qwen3.5-demo", "split": split}, benchmark)


def _model(smoke: Path, root: Path) -> prices.Model:
    return prices.Model(reading.load(smoke / "config/smoke.yaml"), root, TABLE)


def test_measurements_replace_estimates_of_their_kind(smoke: Path, tmp_path: Path) -> None:
    first, second, to_do, other = _evaluate(0), _evaluate(1), _evaluate(2), _evaluate(3, "validation")
    for job, seconds in ((first, 10.0), (second, 30.0)):
        file = tmp_path / str(job.benchmark)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"s": 99.0}) + "\n" + json.dumps({"s": seconds}) + "\n")
    run = DryRun((first, second, to_do, other), frozenset({to_do, other}), frozenset())
    model = _model(smoke, tmp_path)
    priced = prices.price(run, model)
    assert priced.estimates[first].seconds == 10
    assert priced.estimates[to_do].seconds == 20
    assert priced.estimates[other] == model.estimate(other)
    group = ("evaluate_expert", "qwen3.5-demo", "test")
    assert priced.replaced[group][0] == job_times.MeasuredTimes(20, 2)
    assert "20.0 s a job, mean of 2" in report.report("all", priced, model)


def test_a_training_run_goes_by_recorded_steps(smoke: Path, tmp_path: Path) -> None:
    def train(domain: str) -> Job:
        folder = f"experts/qwen3.5-demo/{domain}/seed-1"
        wildcards = {"base": "qwen3.5-demo", "domain": domain, "seed": "1"}
        return Job(
            "train_expert",
            (),
            (f"results/smoke/{folder}/expert.json",),
            wildcards,
            f"benchmarks/smoke/train_expert/qwen3.5-demo/{domain}/seed-1.jsonl",
        )

    done, to_do = train("safety"), train("multilingual")
    expert, record = tmp_path / done.outputs[0], tmp_path / str(done.benchmark)
    for file in (expert, record):
        file.parent.mkdir(parents=True)
    expert.write_text(json.dumps({"facts": {"t_star": 2, "last_step": 4}, "wall_s": 8.0}))
    record.write_text(json.dumps({"s": 11.0}))
    model = _model(smoke, tmp_path)
    priced = prices.price(DryRun((done, to_do), frozenset({to_do}), frozenset()), model)
    steps = model.run(to_do).last_step
    assert priced.estimates[done].seconds == 11
    assert priced.estimates[to_do].seconds == pytest.approx(steps * 2.0)


def test_each_recipe_has_its_own_price(smoke: Path, tmp_path: Path) -> None:
    study = yaml.safe_load((smoke / "config/smoke.yaml").read_text())
    short = {name: study["experts"].pop(name) for name in ("train", "durations")}
    long = {"train": short["train"] | {"mode": "lora", "rank": 8, "max_steps": 800}, "durations": {"steps": [800]}}
    study["experts"]["recipes"] = {"default": short, "long": long}
    study["pools"] |= {"long": {"experts": ["multilingual", "safety"], "recipe": "long", "at": "step_800"}}
    model = prices.Model(reading.parse(study, "c.yaml"), tmp_path, TABLE)

    def train(rule: str, below: str) -> Job:
        outputs = [
            f"results/smoke/experts/qwen3.5-demo/safety/{below}/{name}"
            for name in ("step_800/adapter_model.safetensors", "expert.json")
        ]
        return Job(rule, (), tuple(outputs), {"base": "qwen3.5-demo", "domain": "safety", "seed": "1"})

    first, second = train("train_expert", "seed-1"), train("train_expert_1", "long/seed-1")
    assert (model.recipe(first), model.recipe(second)) == ("default", "long")
    assert model.run(second).last_step == 800
    assert model.estimate(second).seconds > model.estimate(first).seconds
    assert storage.file_bytes(model, second, second.outputs[0]) == 2 * storage.file_bytes(
        model, first, first.outputs[0]
    )

    def merge(pool: str) -> Job:
        out = f"results/smoke/merged/qwen3.5-demo/{pool}/ties_adapter/seed-1/adapter_model.safetensors"
        return Job("merge_pool_0", (), (out,), {"base": "qwen3.5-demo", "pool": pool, "seed": "1"})

    sizes = [
        storage.file_bytes(model, job, job.outputs[0]) for job in map(merge, ("same_duration_1x", "long_step_800"))
    ]
    assert sizes[1] == 2 * sizes[0]


def test_a_judge_is_asked_about_every_soup_tried(smoke: Path, tmp_path: Path) -> None:
    study = yaml.safe_load((smoke / "config/smoke.yaml").read_text())
    study["suites"]["validation"]["safety"] = "requests"
    wildcards = {"base": "qwen3.5-demo", "pool": "same_duration_1x", "seed": "1", "method": "greedy_soup"}
    soup = Job("select_soup", (), ("results/smoke/selections/x.json",), wildcards)
    by_keywords = prices.Model(reading.parse(study, "c.yaml"), tmp_path, TABLE).estimate(soup)
    study["benchmarks"]["requests"]["judge"] = "guard"
    study["judges"] = {"guard": {"model": "o/guard", "revision": HASH}}
    model = prices.Model(reading.parse(study, "c.yaml"), tmp_path, TABLE)
    responses = ("results/smoke/evaluations/x/validation.judged.parquet",)
    judging = model.estimate(Job("judge_base", (), responses, {"base": "qwen3.5-demo", "split": "validation"}))
    # Of two members, one is tried.
    added = model.estimate(soup).seconds - by_keywords.seconds
    assert added == pytest.approx(judging.seconds - prices.START_S)
    assert added > 10


DEMO = {"base": "qwen3.5-demo", "pool": "same_duration_1x", "seed": "1"}


def _demo(root: Path) -> prices.Model:
    """The demo study as cloned, nothing of it run."""
    (root / "config").symlink_to(ROOT / "config")
    return prices.Model(reading.load(ROOT / "config/demo.yaml"), root, TABLE)


def test_a_study_without_sizes_runs_on_the_cpu(tmp_path: Path) -> None:
    model = _demo(tmp_path)
    out = "results/demo/evaluations/bases/qwen3.5-demo/test.json"
    estimate = model.estimate(Job("evaluate_base", (), (out,), {"base": "qwen3.5-demo"}))
    assert not estimate.on_gpu
    workload = model.evaluation_workload("qwen3.5-demo")
    # Four batches of 100 items, by the seconds of a pass; the rest is reading, and what lm-eval does around it.
    generated = 4 * (27 + 22 + 24 + 18) * 32 / 2475
    read = (100 * (40 + 38 + 34) + 80 * 4 * 30 + 120 * 25) / 6355
    size = workload.parameters / 959_288
    assert estimate.seconds == pytest.approx(5.7 + (generated + read) * size / (1 - 0.21), rel=0.01)


def test_larger_batches_take_longer_and_smaller_ones_do_not(tmp_path: Path) -> None:
    model = _demo(tmp_path)
    workload = model.evaluation_workload("qwen3.5-demo")

    def seconds(batch: int, items: int) -> float:
        return model.generation_s(workload, items=items, new_tokens=10, batch_size=batch)

    assert seconds(32, 32) == seconds(32, 8) == seconds(8, 8) == pytest.approx(10 * 32 / 2475, rel=0.01)
    assert seconds(64, 64) == pytest.approx(2 * seconds(32, 32))
    assert seconds(32, 64) == pytest.approx(2 * seconds(32, 32))


def test_what_analyses_read_is_counted(tmp_path: Path) -> None:
    model = _demo(tmp_path)
    workload = model.evaluation_workload("qwen3.5-demo")

    def tokens(rule: str) -> float:
        seconds = model.estimate(Job(rule, (), ("x",), DEMO)).seconds - model.start_s("qwen3.5-demo")
        return seconds * model.pace("read", workload).operations_per_s / 2 / workload.parameters

    # 5 experts and 7 merges; 30 examples of 50 tokens from each of 5 domains.
    assert tokens("measure_bias_variance") == pytest.approx((5 + 7) * 5 * 30 * 50)
    # 10 pairs at 3 inner points in 2 spaces on 2 domains, and 5 ends on all domains; 20 examples.
    assert tokens("measure_connectivity") == pytest.approx((10 * 3 * 2 * 2 + 5 * 5) * 20 * 50)


def test_claims_are_judged_without_a_gpu(smoke: Path, tmp_path: Path) -> None:
    claims = Job("judge_claims", (), ("results/smoke/claims.parquet", "results/smoke/claims.md"))
    assert _model(smoke, tmp_path).estimate(claims) == prices.StageEstimate(prices.OTHER_S, on_gpu=False)


def test_a_dense_merge_fills_the_disk(smoke: Path, tmp_path: Path) -> None:
    wildcards = {"base": "qwen3.5-demo", "pool": "same_duration_1x", "seed": "1"}
    model = _model(smoke, tmp_path)
    dense, exact, factors = (
        f"results/merged/{method}/seed-1/{name}.safetensors"
        for method, name in (
            ("fisher", "task_vector"),
            ("simple_average", "adapter_model"),
            ("ties_adapter", "adapter_model"),
        )
    )
    one = Job("merge_pool_0", (), (dense,), wildcards)
    assert model.estimate(one).seconds == pytest.approx(4 + 2 * 1e6 / 85e6)
    job = Job("merge_pool_0", (), (dense, exact, factors), wildcards)
    assert storage.file_bytes(model, job, dense) == 4_000_000
    assert storage.file_bytes(model, job, exact) == 4 * 10_264 * 4 * 2
    assert storage.file_bytes(model, job, factors) == 4 * 10_264 * 4
    assert model.estimate(job).seconds == pytest.approx(4 + 2 * (1e6 + 2 * 10_264 * 4) / 85e6)
    file = tmp_path / dense
    file.parent.mkdir(parents=True)
    file.write_bytes(b"12345")
    assert storage.file_bytes(model, job, dense) == 5


# What a finished study has measured


def test_rates_of_a_finished_study(tmp_path: Path) -> None:
    study = reading.load(ROOT / "config/demo.yaml")
    base = study.bases["qwen3.5-demo"]
    _checkpoint(tmp_path / f"resources/models/{base.model}/{base.revision}")
    expert = tmp_path / "results/demo/experts/qwen3.5-demo/math/seed-1"
    data = tmp_path / "results/demo/data/math"
    evaluated = tmp_path / "results/demo/evaluations/bases/qwen3.5-demo"
    for folder in (expert, data, evaluated):
        folder.mkdir(parents=True)
    trained = {"tokens": 3000, "tokens_per_second": 10.0, "validation_share": 0.25}
    passes = {"read_tokens": 800, "read_s": 20.0, "generated_tokens": 64, "generated_s": 40.0}
    for file, facts, wall_s in (
        (expert / "expert.json", trained, 500.0),
        (evaluated / "test.json", {"passes": passes}, 80.0),
    ):
        content = {"facts": facts, "wall_s": wall_s, "machine": {"system": "Linux"}, "config": {"mode": "lora"}}
        file.write_text(json.dumps(content))
    (data / "domain.json").write_text(json.dumps({"facts": {"tokens": {"validation": 50}}}))
    pq.write_table(pa.table({"step": [0, 40, 80]}), expert / "curve.parquet")
    # Half of the time of each job, another had the core.
    benchmarks = {
        "train_expert/b/math/seed-1": 510.0, "evaluate_base/b/test": 100.0, "collect_results": 4.0, "prepare_domain/math": 30.0,
    }  # fmt: skip
    for name, seconds in benchmarks.items():
        file = tmp_path / f"benchmarks/demo/{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"s": seconds, "cpu_time": seconds / 2}) + "\n")

    found = recorded.figures(study, tmp_path, "snakemake")
    assert {figure.stage: figure.figure for figure in found} == pytest.approx(
        {
            "train": 20.0,  # 3000 tokens in 300 s, half of them ours
            "validate": 3.0,  # 3 validations of 50 tokens in a quarter of 400 s
            "read": 80.0,
            "generate": 3.2,
            "outside": 0.25,
            "start": 10.0,  # 100 s of the job, 80 s of them on the subject
            "light": 2.0,
            "prepare": (640 + 500) / 5 / 13,  # of a mean domain
        },
        rel=1e-3,
    )
    assert {(figure.chip, figure.parameters, figure.mode) for figure in found if figure.stage == "train"} == {
        ("cpu", 124, "lora")
    }
    # What is printed is what the table takes.
    file = tmp_path / "rates.yaml"
    file.write_text(f"chips: {{cpu: {{teraflops: 1, bandwidth_gb_s: 1}}}}\nfigures:\n{recorded.lines(found)}\n")
    assert rates.load(file).figures == found


# Order


def _chain() -> list[Job]:
    """Two merges, each evaluated, then collected; listed as Snakemake does, merges first."""
    merges = [Job(f"merge_pool_{n}", (), (f"m{n}",)) for n in (0, 1)]
    evaluations = [Job(f"evaluate_merged_{n}", (f"m{n}",), (f"e{n}",)) for n in (0, 1)]
    return [*merges, *evaluations, Job("collect_results", ("e0", "e1"), ("results",))]


def test_the_longest_chain() -> None:
    seconds = {"m0": 1.0, "m1": 5.0, "e0": 7.0, "e1": 4.0, "results": 2.0}
    assert order.longest_chain_s(_chain(), lambda job: seconds[job.outputs[0]]) == 5 + 4 + 2
    assert order.longest_chain_s([], lambda job: 1.0) == 0


def test_one_worker_needs_less_disk_than_all_at_once() -> None:
    chain = _chain()
    assert [job.outputs[0] for job in order.in_order(chain)] == ["m0", "e0", "m1", "e1", "results"]
    sizes_of = {"m0": 100.0, "m1": 100.0, "e0": 1.0, "e1": 1.0, "results": 1.0}
    kept = order.serial_peak_bytes(chain, sizes_of.__getitem__, lambda job: 0.0, set())
    removed = order.serial_peak_bytes(chain, sizes_of.__getitem__, lambda job: 0.0, {"m0", "m1"})
    assert (kept, removed) == (203, 102)
    scratch = order.serial_peak_bytes(chain, sizes_of.__getitem__, lambda job: 50.0, {"m0", "m1"})
    assert scratch == 152


def test_numbers_are_readable() -> None:
    assert (report.hours(0), report.hours(6), report.hours(60), report.hours(3599), report.hours(4_000_000)) == (
        "0.0", "<0.01", "0.02", "1.0", "1,111.1",
    )  # fmt: skip
    assert report.gigabytes(13.04e9) == "13.0"
    assert report.aligned([["a", "1"], ["bb", "22"]]) == "a    1\nbb  22"
