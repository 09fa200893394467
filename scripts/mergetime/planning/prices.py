"""The price of a job: seconds, on a GPU or not, and bytes on disk and from the hub.

A job is priced by its rule and wildcards, a file by its name. What is there already counts as it is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergetime.artifacts.forms import ADAPTER, CHECKPOINT, DELTA, Form, Mode
from mergetime.config.evaluation import VALIDATION_LOSS
from mergetime.config.study import Study
from mergetime.modalities.parts import DEFAULT
from mergetime.planning import costs, rates, sizes, storage, workloads
from mergetime.planning.job_times import Group, MeasuredTimes, group_of, means, own_seconds
from mergetime.planning.jobs import DryRun, Job
from mergetime.planning.rates import Pace, RateTable, Workload
from mergetime.planning.sizes import Sizes
from mergetime.planning.workloads import Items, RunLength, Tokens
from mergetime.study import layout
from mergetime.study.durations import recipes
from mergetime.study.measurements import domains_of
from mergetime.study.methods import merge_ids, merges_of
from mergetime.study.pools import pools
from mergetime.study.suites import benchmarks_of, measures_of

GPU_STAGES = ("train", "measure", "evaluate", "select", "judge")
_ON_CPU = ("measure_interference", "select_hyperparameters")
START_S = 15.0
"""Of a job with a model, where the table of rates has no other: imports of torch, transformers and lm-eval."""
STORAGE_BYTES_PER_S = 1e9
"""At which weights are read."""
DOWNLOAD_BYTES_PER_S = 50e6
OTHER_S = 15.0
"""Of a job that no model is made for: a table, a figure, a selection."""
PREPARE_S = 120.0
IMPORTED_RANK = 16
"""Of imported adapters, where the study trains none that they could be like."""
JUDGE_NEW_TOKENS = 32
JUDGE_PROMPT_TOKENS = 200
"""Of a judge's instructions, beside prompt and response."""
VLLM_BATCH = 256
"""Sequences that vLLM takes at a time unless told otherwise."""


@dataclass(frozen=True)
class StageEstimate:
    """What a job costs; ``scratch_bytes`` are there only while it runs, ``download_bytes`` come from the hub."""

    seconds: float
    on_gpu: bool
    scratch_bytes: float = 0.0
    download_bytes: float = 0.0


class Model:
    """The cost model of a study: prices jobs and files by its config, rates, and what is on disk below ``root``."""

    def __init__(self, study: Study, root: Path, table: RateTable) -> None:
        self.study, self.root, self.table, self.paths = study, root, table, layout.of(study)
        self.pools = {pool.id: pool for pool in pools(study)}
        self.merges = merge_ids(study)
        self.recipes = recipes(study)
        self.rank = next((recipe.train.rank for recipe in self.recipes.values()), IMPORTED_RANK)

    @functools.cache  # noqa: B019
    def sizes(self, base: str) -> Sizes:
        """How large a base is."""
        spec = self.study.bases[base]
        lora = any(recipe.train.form == ADAPTER for recipe in self.recipes.values())
        folders = [self.root / layout.model(spec.model, spec.revision)]
        if self.study.hub.folder:
            folders.append(self.root / self.study.hub.folder / "models" / spec.model)
            # What the folder will hold, where the workflow makes it.
            folders += [self.root / "config/demo_base"] if self.study.hub.folder.startswith(layout.DEMO_HUB) else []
        return sizes.sizes_of(base, spec, folders, lora=lora)

    @functools.cache  # noqa: B019
    def items(self, benchmark: str, split: str) -> Items:
        """What a benchmark asks of a subject."""
        tasks = self.study.evaluation.tasks
        spec = self.study.benchmarks[benchmark]
        return workloads.items_of(spec, split, self.root, self.root / tasks if tasks else None)

    @functools.cache  # noqa: B019
    def tokens(self, domain: str) -> Tokens:
        """Mean tokens of a domain's examples."""
        folder = self.root / self.paths.data_folder(domain)
        return workloads.tokens_of(self.study.domains[domain], folder, self.study.plan)

    @functools.cache  # noqa: B019
    def recipe(self, job: Job) -> str:
        """The recipe that a training run goes by, as its outputs say."""
        base, domain, seed = (job.wildcards[name] for name in ("base", "domain", "seed"))
        records = {self.paths.expert_record(layout.training(base, domain, seed, name)): name for name in self.recipes}
        return next(records[file] for file in job.outputs if file in records)

    @functools.cache  # noqa: B019
    def run(self, job: Job) -> RunLength:
        """Where a training run ends."""
        base, domain, seed = (job.wildcards[name] for name in ("base", "domain", "seed"))
        return workloads.run_of(self.study, self.root / self.paths.root, base, domain, seed, self.recipe(job))

    # Time

    def estimate(self, job: Job) -> StageEstimate:
        """What a job costs by the model alone."""
        if job.stage == "fetch":
            size = storage.download_bytes(self, job)
            return StageEstimate(self._light_s + size / DOWNLOAD_BYTES_PER_S, False, download_bytes=size)
        with_model = job.stage in GPU_STAGES and job.stem not in _ON_CPU
        on_gpu = with_model and self.chip(job.wildcards.get("base")) != rates.CPU
        if job.stem == "train_expert":
            return StageEstimate(self._train_s(job), on_gpu, storage.checkpoint_bytes(self, job))
        seconds = {
            "prepare": lambda: self._prepare_s(job),
            "measure": lambda: self._measure_s(job),
            "merge": lambda: self._merge_s(job),
            "evaluate": lambda: self._evaluate_s(job),
            "judge": lambda: self._judge_s(job),
            "select": lambda: self._soup_s(job) if with_model else self._light_s,
        }.get(job.stage, lambda: self._light_s)
        return StageEstimate(seconds(), on_gpu)

    def chip(self, base: str | None) -> str:
        """What jobs with a base run on; the CPU where the config gives it no size, as :mod:`mergetime.workflow` has it.

        Without a base: that of the largest.
        """
        named = [self.study.bases[base]] if base else self.study.bases.values()
        return self.study.plan.gpu if any(spec.parameters for spec in named) else rates.CPU

    @functools.cached_property
    def tiny(self) -> bool:
        """Whether the whole study is one for the CPU, whose light jobs are tiny too."""
        return self.chip(None) == rates.CPU

    def figure(self, stage: rates.Stage, chip: str, otherwise: float) -> float:
        """What was measured by jobs or shares, else the assumption."""
        figure = rates.figure_of(self.table, stage, chip)
        return figure.figure if figure else otherwise

    @property
    def _light_s(self) -> float:
        return self.figure("light", rates.CPU, OTHER_S) if self.tiny else OTHER_S

    def _prepare_s(self, job: Job) -> float:
        spec, figure = self.study.domains[job.wildcards["domain"]], rates.figure_of(self.table, "prepare", rates.CPU)
        if figure is None or not self.tiny:
            return PREPARE_S
        return self._light_s + (spec.train + spec.validation) / figure.figure

    def start_s(self, base: str) -> float:
        """Seconds until a job has its base."""
        started = self.figure("start", self.chip(base), START_S)
        return started + self.sizes(base).stored_bytes / STORAGE_BYTES_PER_S

    def training_workload(self, base: str, mode: Mode) -> Workload:
        """What training of a base is done on and with."""
        return self._workload(base, self.study.bases[base].dtype, mode)

    @property
    def batch_size(self) -> int:
        """Sequences that are generated at a time."""
        options = self.study.evaluation
        return VLLM_BATCH if options.backend == "vllm" else options.batch_size

    def evaluation_workload(self, base: str) -> Workload:
        """What evaluation of subjects of a base is done on and with, but for what vLLM generates."""
        return self._workload(base, self.study.evaluation.dtype)

    def _workload(self, base: str, dtype: costs.DType, mode: Mode | None = None) -> Workload:
        plan, chip, spec = self.study.plan, self.chip(base), self.study.bases[base]
        kernels = "torch" if chip == rates.CPU else plan.kernels
        return Workload(chip, kernels, spec.modality, dtype, self.sizes(base).parameters, mode)

    def pace(self, stage: rates.Stage, workload: Workload) -> Pace:
        """How fast whole texts pass through a model."""
        return rates.pace(self.table, self.study.plan, stage, workload)

    def _pass_s(self, workload: Workload, tokens: float, per_token: float = 2.0) -> float:
        """Seconds to read so many tokens, at so many operations a token and parameter."""
        return per_token * workload.parameters * tokens / self.pace("read", workload).operations_per_s

    def _train_s(self, job: Job) -> float:
        base, domain = job.wildcards["base"], job.wildcards["domain"]
        recipe = self.recipes[self.recipe(job)]
        train, run, tokens = recipe.train, self.run(job), self.tokens(domain)
        workload = self.training_workload(base, train.mode)
        learned = costs.training_operations(
            workload.parameters,
            run.last_step * train.batch_size * tokens.train,
            every_weight=train.form == CHECKPOINT,
            gradient_checkpointing=bool(train.gradient_checkpointing),
        )
        validated = costs.validations(train, recipe.durations, run.last_step) * self.study.domains[domain].validation
        read = costs.forward_operations(workload.parameters, validated * tokens.validation)
        return (
            self.start_s(base)
            + learned / self.pace("train", workload).operations_per_s
            + read / self.pace("validate", workload).operations_per_s
        )

    def _suite_s(self, base: str, split: str) -> float:
        """Seconds to run a suite on one subject of a base that is loaded."""
        options, workload = self.study.evaluation, self.evaluation_workload(base)
        seconds = 0.0
        for domain, benchmark in measures_of(self.study, split):
            if benchmark == VALIDATION_LOSS:
                read = self.study.domains[domain].validation * self.tokens(domain).validation
                seconds += self._pass_s(workload, read)
                continue
            asked = self.items(benchmark, split)
            seconds += self._pass_s(workload, asked.items * asked.options * asked.prompt_tokens)
            if asked.new_tokens:
                seconds += self.generation_s(
                    workload,
                    items=asked.items,
                    new_tokens=asked.new_tokens,
                    batch_size=self.batch_size,
                    vllm=options.backend == "vllm",
                )
        return seconds / (1 - self.figure("outside", workload.chip, 0.0))

    def generation_s(
        self, workload: Workload, *, items: int, new_tokens: float, batch_size: int, vllm: bool = False
    ) -> float:
        """Seconds to generate: by the measured seconds of a pass, or by operations and the bandwidth that is reached.

        A pass over another number of sequences is taken to last as long up to the measured batch, and in proportion
        beyond it; one of another model goes by the parameters.
        """
        figure = self.generation_figure(workload, vllm=vllm)
        if figure and figure.batch_size and figure.parameters:
            pass_s = figure.batch_size / figure.figure * workload.parameters / figure.parameters
            passes = math.ceil(items / batch_size) * new_tokens
            return passes * pass_s * max(1.0, min(batch_size, items) / figure.batch_size)
        top = rates.peak(self.table, self.study.plan, workload.chip)
        gpu = workload.chip != rates.CPU
        return costs.generation_seconds(
            workload.parameters,
            costs.BYTES[workload.dtype] * workload.parameters,
            items=items,
            new_tokens=new_tokens,
            batch_size=batch_size,
            rate=costs.reached(top, self.study.plan.utilization, workload.dtype, gpu=gpu),
        )

    def generation_figure(self, workload: Workload, *, vllm: bool = False) -> rates.MeasuredRate | None:
        """What was measured of generating on this chip."""
        kernels: rates.Kernels = "vllm" if vllm else workload.kernels
        return rates.nearest(self.table, "generate", replace(workload, kernels=kernels), chips=[workload.chip])

    def _evaluate_s(self, job: Job) -> float:
        base = job.wildcards["base"]
        return self.start_s(base) + job.folders * self._suite_s(base, job.split)

    def _soup_s(self, job: Job) -> float:
        # The best expert has its score already; each of the others is tried, and judged, once.
        base = job.wildcards["base"]
        trial = self._suite_s(base, "validation") + self._judging_s("validation", 1)
        return self.start_s(base) + (self._members(job) - 1) * trial

    def _judge_s(self, job: Job) -> float:
        started = self.figure("start", self.chip(job.wildcards.get("base")), START_S)
        return started + self._judging_s(job.split, job.folders)

    def _judging_s(self, split: str, subjects: int) -> float:
        """Seconds to load a split's judges and to have them judge the responses of some subjects."""
        seconds = 0.0
        for _, name in benchmarks_of(self.study, split):
            spec = self.study.benchmarks[name]
            if spec.judge is None:
                continue
            judge, asked = self.study.judges[spec.judge], self.items(name, split)
            parameters = workloads.JUDGE_PARAMETERS[judge.kind]
            # A Mistral has no linear attention: its kernels are PyTorch's own, and fast.
            workload = Workload(self.chip(None), "fused", DEFAULT, judge.dtype, parameters)
            read = asked.items * (asked.prompt_tokens + asked.new_tokens + JUDGE_PROMPT_TOKENS)
            seconds += costs.BYTES[judge.dtype] * parameters / STORAGE_BYTES_PER_S + subjects * (
                self._pass_s(workload, read)
                + self.generation_s(
                    workload, items=asked.items, new_tokens=JUDGE_NEW_TOKENS, batch_size=judge.batch_size
                )
            )
        return seconds

    def _measure_s(self, job: Job) -> float:
        base = job.wildcards["base"]
        if job.stem == "measure_interference":
            return costs.merge_seconds(self._members(job) * self.sizes(base).matrix_parameters)
        read = {"measure_bias_variance": self._probability_tokens, "measure_connectivity": self._path_tokens}
        if job.stem in read:
            return self.start_s(base) + self._pass_s(self.evaluation_workload(base), read[job.stem](job))
        if job.stem != "measure_expert":
            return self._light_s
        kind, settings = job.wildcards["kind"], self.study.statistics
        example = self._tokens_of_expert(job.wildcards["expert"])
        # Fisher takes gradients of all weights for every draw; Gram matrices cost about as much as the pass they see.
        if kind == "gram":
            per_token, examples = 4.0, float(settings.examples)
        elif kind == "fisher":
            per_token, examples = 6.0, float(settings.examples * settings.fisher.get("draws", 1))
        else:
            per_token = 6.0
            examples = float(settings.mask.get("steps", 10) * settings.mask.get("batch_size", 16))
        workload = self._workload(base, "float32")
        return self.start_s(base) + self._pass_s(workload, examples * example, per_token)

    def _probability_tokens(self, job: Job) -> float:
        """Tokens that a pool's experts and reported merges read, of validation examples of every domain."""
        pool, examples = self.pools[job.wildcards["pool"]], self.study.bias_variance.examples
        reported = [merge for merge in merges_of(self.study, pool) if merge.candidate is None]
        read = sum(
            min(examples, spec.validation) * self.tokens(name).validation for name, spec in self.study.domains.items()
        )
        return (len(pool.experts) + len(reported)) * read

    def _path_tokens(self, job: Job) -> float:
        """Tokens that are read on the paths between all pairs of a pool, each on its two domains; ends count once."""
        settings, domains = self.study.mode_connectivity, domains_of(self.study, self.pools[job.wildcards["pool"]])
        whole = CHECKPOINT in self._forms(job)
        inside = (len(settings.alphas) - 2) * (1 if whole else len(settings.spaces))
        read = {
            name: min(settings.examples, self.study.domains[name].validation) * self.tokens(name).validation
            for name in domains.values()
        }
        pairs = itertools.combinations(domains.values(), 2)
        ends = len(domains) * sum(read.values())
        return ends + inside * sum(sum(read[name] for name in {*pair}) for pair in pairs)

    def _tokens_of_expert(self, expert: str) -> float:
        first, *rest = expert.split("/")
        domain = self.study.experts.imported[rest[0]].domain if first == "imported" else first
        return self.tokens(domain).train if domain else float(self.study.plan.tokens_per_example)

    def _members(self, job: Job) -> int:
        return len(self.pools[job.wildcards["pool"]].experts)

    def member_ranks(self, job: Job) -> list[int]:
        """The ranks of the adapters that a job merges."""
        experts = self.pools[job.wildcards["pool"]].experts
        return [self.recipes[expert.recipe].train.rank if expert.recipe else self.rank for expert in experts]

    def _merge_s(self, job: Job) -> float:
        base = job.wildcards["base"]
        entries = {
            DELTA.weights: self._members(job) * self.dense_entries(job),
            ADAPTER.weights: self.sizes(base).adapter_parameters * sum(self.member_ranks(job)),
        }
        return costs.merge_seconds(sum(entries.get(Path(file).name, 0) for file in job.outputs))

    def dense_entries(self, job: Job) -> int:
        """The entries of a merge's dense task vector: of whole models where a member is one, else of matrices alone."""
        size = self.sizes(job.wildcards["base"])
        return size.parameters if CHECKPOINT in self._forms(job) else size.matrix_parameters

    def _forms(self, job: Job) -> list[Form]:
        """The forms of the experts that are trained and that a job merges or measures."""
        experts = self.pools[job.wildcards["pool"]].experts
        return [self.recipes[expert.recipe].train.form for expert in experts if expert.recipe]


@dataclass(frozen=True)
class Priced:
    """A dry run with the price of every job and file, and which estimates were replaced by measurements."""

    run: DryRun
    estimates: dict[Job, StageEstimate]
    files: dict[str, float]
    replaced: dict[Group, tuple[MeasuredTimes, float]]
    """What was measured of a group of jobs, and the mean of the estimates that it replaced, in seconds."""


def price(run: DryRun, model: Model) -> Priced:
    """Price every job: by its own record, by the mean of its group, or by the model, the first that is there.

    A training run to do is priced by the recorded seconds of a step instead, as runs differ in length.
    """
    measured = means(run.jobs, model.root)
    by_model: dict[Group, list[float]] = {}
    estimates = {}
    for job in run.jobs:
        estimate = model.estimate(job)
        group, own = group_of(job), own_seconds(job, model.root)
        if group in measured:
            by_model.setdefault(group, []).append(estimate.seconds)
            mean = measured[group].mean_s
            if job in run.to_do and job.stem == "train_expert":
                mean = _by_steps(job, model, run.jobs) or mean
            seconds = mean if own is None or job in run.to_do else own
            estimate = StageEstimate(seconds, estimate.on_gpu, estimate.scratch_bytes, estimate.download_bytes)
        estimates[job] = estimate
    files = {file: storage.file_bytes(model, job, file) for job in run.jobs for file in job.outputs}
    replaced = {group: (measured[group], sum(values) / len(values)) for group, values in by_model.items()}
    return Priced(run, estimates, files, replaced)


def _by_steps(job: Job, model: Model, jobs: Sequence[Job]) -> float | None:
    """Seconds of a training run: its steps, times the mean of a step in the recorded runs of its base and recipe."""
    runs = [
        model.run(other)
        for other in jobs
        if other.stem == "train_expert"
        and other.wildcards["base"] == job.wildcards["base"]
        and model.recipe(other) == model.recipe(job)
    ]
    recorded = [run.step_s for run in runs if run.source == "recorded" and run.step_s]
    steps = model.run(job).last_step
    return steps * sum(recorded) / len(recorded) if recorded else None
