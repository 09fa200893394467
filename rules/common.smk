import functools
import json
import os
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from mergetime.config.reading import parse as parse_study
from mergetime.artifacts import forms
from mergetime.study import grid, layout
from mergetime.core.errors import UserError
from mergetime.merging import registry
from mergetime.core.digests import code_digest
from mergetime.workflow import digests, fetching, publishing

CONFIG = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
PLAN_FOR = config.pop("plan_for", "all")
try:
    STUDY = parse_study(dict(config), CONFIG)
    POOLS = {pool.id: pool for pool in grid.pools(STUDY)}
except UserError as error:
    sys.exit(f"error: {error}")
except ValueError as error:
    sys.exit(f"error: {CONFIG}: {error}")

RESULTS = f"results/{STUDY.study}"
SEEDS = STUDY.seeds
DURATIONS = grid.durations(STUDY)
MERGE_IDS = grid.merge_ids(STUDY)
CANDIDATES = [name for name, (_, number) in MERGE_IDS.items() if number is not None]
SPLITS = ["validation", "test"] if STUDY.suites.validation else ["test"]
EVALUATIONS = f"{RESULTS}/evaluations"
PER_JOB = STUDY.evaluation.subjects_per_job
FINAL = [merge_id for merge_id in MERGE_IDS if merge_id not in CANDIDATES]
MERGED = f"{RESULTS}/merged/{{base}}/{{pool}}/{{method}}/seed-{{seed}}"
EXPERT = f"{RESULTS}/experts/{{base}}/{{domain}}/seed-{{seed}}"
TRAIN = STUDY.experts.train
SELECTION = f"{RESULTS}/selections/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.json"
EXPERT_FILES = list(forms.trained_as(TRAIN.mode).files) if TRAIN else []
TASKS = digests.of_tasks(STUDY)
PAPER = publishing.paper_of(STUDY)
# What can be made of this study; its paper may have more, which a study of its kind could have.
TABLES = publishing.tables(STUDY)
FIGURES = publishing.figures(STUDY)
POOL = publishing.shown_pool(STUDY)

shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={workflow.basedir}/scripts PYTHONHASHSEED=0"
    " HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1; "
)


def one_of(names):
    """A wildcard's constraint to known names; nothing matches where there is none."""
    return "|".join(map(re.escape, names)) or "(?!)"


# Fetching
model_json = lambda wildcards: fetching.base_record(STUDY, wildcards.base)
benchmarks_of = functools.partial(fetching.benchmarks_of, STUDY)
benchmark_folders = functools.partial(fetching.benchmark_folders, STUDY)
benchmark_json = functools.partial(fetching.benchmark_records, STUDY)


@functools.cache
def expert_weights(pool, base, seed):
    """The weights of a pool's members, by name: whole models where they are trained so, else adapters."""
    return {
        name: f"{RESULTS}/experts/{base}/{expert.path.format(seed=seed)}/"
        + (EXPERT_FILES[0] if expert.duration else forms.ADAPTER.weights)
        for name, expert in POOLS[pool].members.items()
    }


def members_of(wildcards):
    return list(expert_weights(wildcards.pool, wildcards.base, wildcards.seed).values())


# Merging
@functools.cache
def form_of(method):
    """What a method's merges are written as: an adapter where that is exact, else (and of whole models) a dense update."""
    whole_models = TRAIN and TRAIN.mode == "full"
    return "delta" if whole_models else STUDY.methods[method].written_as


def kept_or_temp(dense):
    """A dense task vector takes four bytes a weight: the config may say not to keep it after its evaluation."""
    return dense if STUDY.keep_dense_merges else temp(dense)


def selections_of(wildcards, merge_ids):
    """What validation chose, by merge id, for methods that choose; nothing for their candidates and for other methods."""
    return {
        merge_id: SELECTION.format(**{**wildcards, "method": name})
        for merge_id, (name, candidate) in MERGE_IDS.items()
        if merge_id in merge_ids and STUDY.methods[name].by and candidate is None
    }


def statistics_of(wildcards, merge_id):
    """What was measured of a pool's members on their data, by name, for a method that needs it."""
    kind = registry.get(STUDY.methods[MERGE_IDS[merge_id][0]].method).statistics
    return {
        name: f"{RESULTS}/statistics/{wildcards.base}/{expert.path.format(seed=wildcards.seed)}/{kind}.safetensors"
        for name, expert in POOLS[wildcards.pool].members.items()
        if kind
    }


def training_data_of(wildcards):
    """The training data of the expert with this path."""
    first, *rest = wildcards.expert.split("/")
    domain = STUDY.experts.imported[rest[0]].domain if first == "imported" else first
    return f"{RESULTS}/data/{domain}/train.parquet"


def measure_options(wildcards):
    """The config's settings of a kind of statistic, as options of measure_expert.py."""
    settings = getattr(STUDY.statistics, wildcards.kind)
    return [
        f"--examples {STUDY.statistics.examples}",
        *(f"--set {name}={value}" for name, value in settings.items()),
    ]


def merge_options(wildcards, merge_id):
    """What one merge alone is told: the method with its hyper-parameters, what was measured, what validation chose.

    From wildcards alone: Snakemake does not compare params that are made from inputs, and would keep old merges.
    """
    name, _ = MERGE_IDS[merge_id]
    method = STUDY.methods[name]
    parameters = dict(method.parameters)
    parameters |= grid.merges(STUDY)[merge_id].changes
    statistics = statistics_of(wildcards, merge_id)
    selection = selections_of(wildcards, [merge_id])
    return [
        f"--out {MERGED.format(**{**wildcards, 'method': merge_id})}",
        f"--method {method.method}",
        f"--space {method.space}",
        f"--output {form_of(name)}",
        *([f"--preset {method.preset}"] if method.preset else []),
        *(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}"
            for key, value in parameters.items()
        ),
        *(f"--statistics {name}={file}" for name, file in statistics.items()),
        *(f"--selection {file}" for file in selection.values()),
    ]


def pool_options(wildcards, merge_ids):
    """The merges of a pool that one job makes, as options of merge_pool.py."""
    weights = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
    merges = [" ".join(merge_options(wildcards, merge_id)) for merge_id in merge_ids]
    return [
        *(f"--expert {name}={Path(file).parent}" for name, file in weights.items()),
        *(f"--merge {shlex.quote(options)}" for options in merges),
    ]


def merged_weights(merge_id):
    """The weights of a merged artifact, by the form that it is written in."""
    form = form_of(MERGE_IDS[merge_id][0])
    file = {
        "delta": "task_vector.safetensors",
        "adapter": "adapter_model.safetensors",
    }[form]
    return f"{MERGED}/{file}".replace("{method}", merge_id)


def merged_files(merge_id):
    """The files that a merge ends in."""
    weights = merged_weights(merge_id)
    folder = str(Path(weights).parent)
    if form_of(MERGE_IDS[merge_id][0]) == "delta":
        return [kept_or_temp(weights), f"{folder}/merged.json"]
    return [weights, f"{folder}/adapter_config.json", f"{folder}/merged.json"]


wildcard_constraints:
    base=one_of(STUDY.bases),
    domain=one_of(STUDY.domains),
    imported=one_of(STUDY.experts.imported),
    duration=one_of(DURATIONS),
    pool=one_of(POOLS),
    method=one_of(MERGE_IDS),
    seed=one_of(map(str, SEEDS)),
    split=one_of(SPLITS),
    hub_id="[^/]+/[^/]+",
    revision="[0-9a-f]{40}|unresolved",
