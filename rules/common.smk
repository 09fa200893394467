import functools
import json
import os
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from mergetime.study import layout
from mergetime.config import parse as parse_study
from mergetime.core.errors import UserError
from mergetime.artifacts.forms import ADAPTER
from mergetime.core.provenance import code_digest, tasks_digest
from mergetime.publishing.offers import offered
from mergetime.publishing.registry import FIGURES as ALL_FIGURES
from mergetime.publishing.registry import FILES
from mergetime.publishing.registry import TABLES as ALL_TABLES
from mergetime.study.durations import durations
from mergetime.workflow import (
    analysing,
    batching,
    collecting,
    evaluating,
    merging,
    selecting,
)
from mergetime.workflow.grid import Grid

CONFIG = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
PLAN_FOR = config.pop("plan_for", "all")
try:
    STUDY = parse_study(dict(config), CONFIG)
    GRID = Grid.of(STUDY)
except UserError as error:
    sys.exit(f"error: {error}")
except ValueError as error:
    sys.exit(f"error: {CONFIG}: {error}")

PATHS = GRID.paths
RESULTS = PATHS.root
SPLITS = GRID.splits
JUDGED = evaluating.judged_splits(GRID)
MERGE_BATCHES = batching.merge_batches(GRID)
DURATIONS = durations(STUDY)
EXPERT = f"{RESULTS}/experts/{{base}}/{{domain}}/seed-{{seed}}"
TRAIN = STUDY.experts.train
DEMO_HUB = "resources/demo/hub"
REHEARSAL_HUB = "resources/rehearsal/hub"
HUB = f"--endpoint {STUDY.hub.endpoint}" + (
    f" --hub-folder {STUDY.hub.folder}" if STUDY.hub.folder else ""
)
TASKS = tasks_digest(Path(STUDY.evaluation.tasks)) if STUDY.evaluation.tasks else ""
TABLES = offered(ALL_TABLES, STUDY)
FIGURES = offered(ALL_FIGURES, STUDY)
# Where a study merges several pools at a duration, tables and figures show the one that its config lists first.
POOL = next(iter(STUDY.pools))

shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={workflow.basedir}/scripts PYTHONHASHSEED=0"
    " HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1; "
)


def one_of(names):
    """A wildcard's constraint to known names; nothing matches where there is none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def model_folder(base):
    return f"resources/models/{STUDY.bases[base].model}/{STUDY.bases[base].revision}"


def model_json(wildcards):
    return f"{model_folder(wildcards.base)}/fetched.json"


def dataset_json(domain):
    """The fetched training set of a domain."""
    source = STUDY.domains[domain]
    return f"resources/datasets/{source.dataset}/{source.config}/{source.revision}/fetched.json"


def benchmark_json(split):
    """The fetched data of a split's benchmarks."""
    return evaluating.benchmark_files(STUDY, split)


# Merging and evaluating
def pool_of(wildcards):
    """Base, pool and seed: what most functions of a pool begin with."""
    return wildcards.base, wildcards.pool, wildcards.seed


def members_of(wildcards):
    return merging.members(GRID, *pool_of(wildcards))


def suite_of(wildcards):
    return evaluating.suite_files(GRID, wildcards.split)


def suite_json(wildcards):
    return evaluating.suite_json(GRID, wildcards.split)


def subjects_json(patterns, split="{split}"):
    """The param of subjects, as a function of wildcards."""
    return lambda wildcards: evaluating.subjects_json(
        GRID,
        [pattern.format(**wildcards) for pattern in patterns],
        split.format(**wildcards),
    )


def made_by(name, files):
    """These files as a rule's outputs: Snakemake then asks no other rule whether it makes them."""
    outputs = {str(file): file for file in getattr(rules, name).output}
    return [outputs[file] for file in files]


# Fetching
def hub_folder_ready(_):
    """A folder hub that this workflow makes itself is an input of whatever is fetched from it."""
    made_here = STUDY.hub.folder in (DEMO_HUB, REHEARSAL_HUB)
    return f"{STUDY.hub.folder}.json" if made_here else []


def splits_asked_of(wildcards):
    """The splits that training examples are drawn from, so that a wrong name is found where the network is."""
    found = {
        domain.split
        for domain in STUDY.domains.values()
        if (domain.dataset, domain.revision) == (wildcards.hub_id, wildcards.revision)
        and str(domain.config) == wildcards.configuration
    }
    return [f"--split {split}" for split in sorted(found)]


def everything_fetched():
    """All that a study fetches, for a machine with a network to prepare one without."""
    models = [*STUDY.bases.values(), *STUDY.judges.values()]
    return [
        *(
            f"resources/models/{source.model}/{source.revision}/fetched.json"
            for source in models
        ),
        *(dataset_json(domain) for domain in STUDY.domains),
        *(file for split in SPLITS for file in benchmark_json(split)),
        *(
            f"{RESULTS}/experts/{imported.base}/imported/{name}/expert.json"
            for name, imported in STUDY.experts.imported.items()
        ),
    ]


# Training
EXPERT_FILES = (
    ["model.safetensors", "config.json"]
    if TRAIN and TRAIN.mode == "full"
    else ["adapter_model.safetensors", "adapter_config.json"]
)


def training_options(wildcards):
    """The config's training section, as options of train_expert.py; what is null or has no effect is left out."""
    kept = STUDY.experts.durations
    options = {
        "base-id": STUDY.bases[wildcards.base].model,
        "dtype": STUDY.bases[wildcards.base].dtype,
        "mode": TRAIN.mode,
        "learning-rate": TRAIN.learning_rate,
        "schedule": TRAIN.schedule,
        "monitor": TRAIN.monitor,
        "warmup-steps": TRAIN.warmup_steps,
        "batch-size": TRAIN.batch_size,
        "micro-batch-size": TRAIN.micro_batch_size,
        "save-every": TRAIN.save_every,
        "max-steps": TRAIN.max_steps,
        "multiples": " ".join(map(str, kept.multiples_of_optimum or [])),
        "steps": " ".join(map(str, kept.steps or [])),
        "early-stopping": " ".join(
            f"{name}:every={rule.every},"
            + (
                f"patience={rule.patience}"
                if rule.patience
                else f"rate_below={rule.rate_below}"
            )
            for name, rule in (kept.early_stopping or {}).items()
        ),
    }
    if TRAIN.mode != "full":
        options |= {"rank": TRAIN.rank, "alpha": TRAIN.alpha or TRAIN.rank}
    if TRAIN.schedule == "plateau":
        options |= {
            "plateau-factor": TRAIN.plateau.factor,
            "plateau-patience": TRAIN.plateau.patience,
        }
    switches = {
        "gradient-checkpointing": TRAIN.gradient_checkpointing,
        "group-by-length": TRAIN.group_by_length,
    }
    return [
        *(
            f"--{name} {value}"
            for name, value in options.items()
            if value not in ("", None)
        ),
        *(
            f"--{name}" if on else f"--no-{name}"
            for name, on in switches.items()
            if on is not None
        ),
    ]


# Publishing
def files_of(entry):
    return [f"{RESULTS}/{FILES[name]}" for name in entry.reads]


def options_of(entry):
    """The files that a table or figure reads, and what it must know of the benchmarks, as options."""
    options = [
        f"--{name.replace('_', '-')} {RESULTS}/{FILES[name]}" for name in entry.reads
    ]
    if entry.benchmarks:
        known = {
            name: {"chance": source.chance, "weights": source.weights}
            for name, source in STUDY.benchmarks.items()
        }
        options.append(f"--benchmarks {shlex.quote(json.dumps(known))}")
    return options


wildcard_constraints:
    base=one_of(STUDY.bases),
    domain=one_of(STUDY.domains),
    imported=one_of(STUDY.experts.imported),
    duration=one_of(DURATIONS),
    pool=one_of(GRID.pools),
    method=one_of(GRID.merges),
    seed=one_of(map(str, STUDY.seeds)),
    split=one_of(SPLITS),
    hub_id="[^/]+/[^/]+",
    revision="[0-9a-f]{40}|unresolved",
