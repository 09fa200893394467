"""The plan as text: a row a stage, then disk, downloads and time, then what was assumed and what was measured."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mergetime.artifacts.forms import DELTA
from mergetime.config.evaluation import VALIDATION_LOSS
from mergetime.planning import prices, rates, storage
from mergetime.planning.costs import BYTES, FLOAT32_RATE
from mergetime.planning.jobs import STAGES, Job
from mergetime.planning.order import longest_chain_s, serial_peak_bytes
from mergetime.planning.prices import Model, Priced, StageEstimate
from mergetime.planning.workloads import JUDGE_PARAMETERS, OTHER_DATASET_MEGABYTES, Known
from mergetime.study.suites import groups, measures_of


def hours(seconds: float) -> str:
    """Hours, those below one with two decimals; what is less than a two-hundredth of one says so."""
    return _readable(seconds / 3600)


def gigabytes(number: float) -> str:
    """GB (10^9 bytes) as :func:`hours` gives hours."""
    return _readable(number / 1e9)


def _readable(value: float) -> str:
    return "<0.01" if 0 < value < 0.005 else f"{value:.2f}" if 0 < value < 0.995 else f"{value:,.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def report(target: str, priced: Priced, model: Model) -> str:
    """The whole plan for a target."""
    parts = [
        f"{target} of study {model.study.study}",
        aligned(_stages(priced)),
        aligned(_totals(priced, model)),
        f"Rates, and where each is from (commands: {model.study.plan.rates}):\n" + aligned_pairs(_rates(priced, model)),
        "Assumed:\n" + aligned_pairs(_assumptions(priced, model)),
        "Measured where they ran, and used in place of the estimate:\n" + aligned_pairs(_measurements(priced, model)),
    ]
    return "\n\n".join(parts)


def aligned_pairs(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what is to say of them, the second column starting at one place."""
    listed = list(pairs)
    width = max(len(name) for name, _ in listed)
    return "\n".join(f"  {name.ljust(width)}  {text}".rstrip() for name, text in listed)


def _stages(priced: Priced) -> list[list[str]]:
    head = ["stage", "jobs", "done", "to do", "GPU h", "GPU h to do", "CPU h to do", "kept GB", "removed GB"]
    rows = [head]
    for stage in STAGES:
        jobs = [job for job in priced.run.jobs if job.stage == stage]
        if jobs:
            rows.append([stage, *_row(jobs, priced)])
    return [*rows, ["in all", *_row(priced.run.jobs, priced)]]


def _row(jobs: Sequence[Job], priced: Priced) -> list[str]:
    to_do = [job for job in jobs if job in priced.run.to_do]
    files = [file for job in jobs for file in job.outputs]
    removed = sum(priced.files[file] for file in files if file in priced.run.removed)
    scratch = sum(priced.estimates[job].scratch_bytes for job in jobs)

    def seconds(among: Sequence[Job], on_gpu: bool) -> float:
        return sum(priced.estimates[job].seconds for job in among if priced.estimates[job].on_gpu == on_gpu)

    return [
        f"{len(jobs):,}",
        f"{len(jobs) - len(to_do):,}",
        f"{len(to_do):,}",
        hours(seconds(jobs, True)),
        hours(seconds(to_do, True)),
        hours(seconds(to_do, False)),
        gigabytes(sum(priced.files[file] for file in files) - removed),
        gigabytes(removed + scratch),
    ]


def _totals(priced: Priced, model: Model) -> list[list[str]]:
    jobs, run = priced.run.jobs, priced.run
    written = sum(priced.files.values())
    kept = written - sum(priced.files[file] for file in run.removed if file in priced.files)
    scratch = sum(estimate.scratch_bytes for estimate in priced.estimates.values())
    serial = serial_peak_bytes(
        jobs, priced.files.__getitem__, lambda job: priced.estimates[job].scratch_bytes, run.removed
    )

    def to_do_s(job: Job) -> float:
        return priced.estimates[job].seconds if job in run.to_do else 0.0

    def of(job: Job) -> StageEstimate:
        return priced.estimates[job]

    dense = sum(size for file, size in priced.files.items() if Path(file).name == DELTA.weights)
    source = f"folder {model.study.hub.folder}" if model.study.hub.folder else model.study.hub.endpoint
    return [
        [
            "wall clock if every job ran at once, all jobs",
            f"{hours(longest_chain_s(jobs, lambda job: of(job).seconds))} h",
        ],
        ["wall clock if every job ran at once, jobs to do", f"{hours(longest_chain_s(jobs, to_do_s))} h"],
        ["disk at the end", f"{gigabytes(kept)} GB"],
        ["disk at the peak, one job at a time", f"{gigabytes(serial)} GB"],
        ["disk at the peak, every job at once", f"{gigabytes(written + scratch)} GB"],
        ["dense task vectors in these, all together", f"{gigabytes(dense)} GB"],
        [f"to fetch from {source}, all", f"{gigabytes(sum(of(job).download_bytes for job in jobs))} GB"],
        [f"to fetch from {source}, to do", f"{gigabytes(sum(of(job).download_bytes for job in run.to_do))} GB"],
    ]


def _assumptions(priced: Priced, model: Model) -> Iterable[tuple[str, str]]:
    study = model.study
    plan, options = study.plan, study.evaluation
    jobs = priced.run.jobs
    on_gpu = any(estimate.on_gpu for estimate in priced.estimates.values())
    if on_gpu:
        peak = rates.peak(model.table, plan, plan.gpu)
        peaks = f"{peak.operations_per_s / 1e12:g} TFLOP/s in bfloat16, {peak.bytes_per_s / 1e9:g} GB/s"
        yield "GPU", f"{plan.gpu}: {peaks}; kernels of linear attention: {plan.kernels} (plan.*)"
        yield (
            "utilisation",
            f"{plan.utilization:.0%} of both where nothing is measured; float32 at 1/{1 / FLOAT32_RATE:g} of bfloat16",
        )
    used = {job.wildcards["base"] for job in jobs if "base" in job.wildcards}
    for base in [name for name in study.bases if name in used]:
        size = model.sizes(base)
        guessed = " (matrices taken for all of them)" if size.source == "config" else ""
        yield (
            f"size of {base}",
            f"{size.parameters / 1e6:,.1f} million parameters, {size.matrix_parameters / 1e6:,.1f} in matrices that "
            f"merges update{guessed}; from {size.source}",
        )
    yield from _training(jobs, model)
    asking = [job for job in jobs if job.stage in ("evaluate", "judge") or job.stem == "select_soup"]
    for split in [one for one in groups(study) if any(_split(job) == one for job in asking)]:
        for domain, name in measures_of(study, split):
            yield f"{split}, {domain}", _suite_line(model, name, split)
    if asking:
        batch = f"vLLM, {prices.VLLM_BATCH}" if options.backend == "vllm" else f"{options.batch_size}"
        yield "evaluation", f"batches of {batch}; {options.dtype} weights, {BYTES[options.dtype]} bytes each"
        yield "responses", "every one as long as it may be, the demo's as the longest seen"
    yield (
        "around the work",
        f"weights read at {prices.STORAGE_BYTES_PER_S / 1e9:g} GB/s, fetched at "
        f"{prices.DOWNLOAD_BYTES_PER_S / 1e6:g} MB/s",
    )
    if any(job.stage == "merge" for job in jobs):
        yield "merging", "one core, every dense method at the rate of TIES; solving for RegMean is left out"
    if any(job.stem.startswith("fetch_") for job in jobs):
        judges = ", ".join(f"{number / 1e6:,.0f} million of {kind}" for kind, number in JUDGE_PARAMETERS.items())
        yield (
            "not fetched yet",
            f"models 2 bytes a parameter (judges: {judges}); data sets of unknown size "
            f"{OTHER_DATASET_MEGABYTES:g} MB, benchmarks {Known.megabytes:g} MB; data is on disk twice",
        )
    yield (
        "files",
        f"weights are written in float32, {storage.SAMPLE_BYTES:g} bytes an answer",
    )
    yield "left out", "attention over long contexts, dequantisation of 4-bit bases, generated code, logs, tables"


def _rates(priced: Priced, model: Model) -> Iterable[tuple[str, str]]:
    """A line a rate: what it is, and whether it was measured on this chip, taken from elsewhere, or assumed."""
    jobs = priced.run.jobs
    trainings = {(job.wildcards["base"], model.recipe(job)): job for job in jobs if job.stem == "train_expert"}
    for base, recipe in trainings:
        mode = model.recipes[recipe].train.mode
        workload = model.training_workload(base, mode)
        yield f"train, {base}, {mode}", _pace(model, "train", workload)
        yield f"validate, {base}", _pace(model, "validate", workload)
    reading = [job for job in jobs if job.stage in ("evaluate", "measure") or job.stem == "select_soup"]
    for base in dict.fromkeys(job.wildcards["base"] for job in reading):
        workload = model.evaluation_workload(base)
        yield f"read, {base}", _pace(model, "read", workload)
        yield f"generate, {base}", _generation(model, workload)
    chip, light = model.chip(None), rates.CPU if model.tiny else None
    of_jobs: list[tuple[rates.Stage, str, str | None, str]] = [
        ("outside", "evaluation outside the model", chip, "left out"),
        ("start", "start of a job with a model", chip, f"assumed: {prices.START_S:g} s a job"),
        ("light", "job without a model", light, f"assumed: {prices.OTHER_S:g} s a job"),
        ("prepare", "preparing a domain", light, f"assumed: {prices.PREPARE_S:g} s a job"),
    ]
    for stage, name, where, otherwise in of_jobs:
        figure = rates.figure_of(model.table, stage, where) if where else None
        yield name, rates.described(figure) if figure else otherwise


def _pace(model: Model, stage: rates.Stage, workload: rates.Workload) -> str:
    pace = model.pace(stage, workload)
    tokens = pace.operations_per_s / workload.parameters / rates.operations_per_token(stage, workload.mode)
    return f"{tokens:,.0f} tokens/s; {pace.source}"


def _generation(model: Model, workload: rates.Workload) -> str:
    vllm, batch = model.study.evaluation.backend == "vllm", model.batch_size
    figure = model.generation_figure(workload, vllm=vllm)
    seconds = model.generation_s(workload, items=batch, new_tokens=1, batch_size=batch, vllm=vllm)
    source = rates.origin(figure, workload) if figure else rates.assumption(model.study.plan)
    return f"{batch / seconds:,.0f} tokens/s in batches of {batch}; {source}"


def _split(job: Job) -> str:
    return "validation" if job.stem == "select_soup" else job.split


def _training(jobs: Iterable[Job], model: Model) -> Iterable[tuple[str, str]]:
    study = model.study
    plan, trainings = study.plan, [job for job in jobs if job.stem == "train_expert"]
    # Domains of which the same is assumed share a line.
    assumed: dict[str, dict[str, None]] = {}
    for domain in [name for name in study.domains if any(job.wildcards["domain"] == name for job in trainings)]:
        for job in trainings:
            if job.wildcards["domain"] == domain and (run := model.run(job)).source == "guessed":
                epochs = f"{_by_recipe(job, model)}plan.optimum_epochs {plan.optimum_epochs:g}"
                line = f"T* at step {run.optimum:,} of a run of {run.last_step:,} ({epochs})"
                assumed.setdefault(line, {})[domain] = None
        if not model.tokens(domain).counted:
            line = f"{model.tokens(domain).train:g} tokens an example (plan.tokens_per_example)"
            assumed.setdefault(line, {})[domain] = None
    for line, domains in assumed.items():
        yield f"{len(domains)} domains" if len(domains) > 3 else ", ".join(domains), line
    if any(model.recipes[model.recipe(job)].train.gradient_checkpointing is None for job in trainings):
        yield "gradient checkpointing", "off, where the config leaves it open"


def _by_recipe(job: Job, model: Model) -> str:
    """The recipe of a training run, where the study has several."""
    return f"recipe {model.recipe(job)}, " if len(model.recipes) > 1 else ""


def _suite_line(model: Model, name: str, split: str) -> str:
    if name == VALIDATION_LOSS:
        return "the loss on its own validation examples"
    asked = model.items(name, split)
    compared = f"likelihoods of {asked.options} answers" if asked.options > 1 else "the likelihood of one answer"
    doing = f"up to {asked.new_tokens:,} new tokens" if asked.new_tokens else compared
    return f"{name}: {asked.items:,} items ({asked.source}), prompts of {asked.prompt_tokens:,} tokens, {doing}"


def _measurements(priced: Priced, model: Model) -> Iterable[tuple[str, str]]:
    found = []
    for (rule, *rest), (measured, estimate_s) in priced.replaced.items():
        name = f"{rule} ({', '.join(rest)})" if rest else rule
        found.append((name, f"{measured.mean_s:,.1f} s a job, mean of {measured.jobs} (estimate: {estimate_s:,.1f} s)"))
    trainings = [job for job in priced.run.jobs if job.stem == "train_expert"]
    for job in trainings:
        base, domain, seed = (job.wildcards[name] for name in ("base", "domain", "seed"))
        run = model.run(job)
        if run.source != "guessed":
            steps = f"step {run.optimum:,} of {run.last_step:,}"
            found.append((f"T* of {domain} on {base}, seed {seed}", f"{steps}, {_by_recipe(job, model)}{run.source}"))
    for domain in dict.fromkeys(job.wildcards["domain"] for job in trainings):
        tokens = model.tokens(domain)
        if tokens.counted:
            found.append((f"tokens of {domain}", f"{tokens.train:,.1f} an example, counted in its prepared data"))
    return found or [("nothing yet", "")]
