import json
import os
import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from mergetime import grid
from mergetime.config import parse as parse_study
from mergetime.errors import UserError
from mergetime.merging import registry
from mergetime.provenance import code_digest, tasks_digest

CONFIG = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
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
DEMO_HUB = "resources/demo/hub"
HUB = f"--endpoint {STUDY.hub.endpoint}" + (
    f" --hub-folder {STUDY.hub.folder}" if STUDY.hub.folder else ""
)
TASKS = tasks_digest(Path(STUDY.evaluation.tasks)) if STUDY.evaluation.tasks else ""

shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={workflow.basedir}/scripts PYTHONHASHSEED=0; "
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


def benchmark_folders(name):
    """Where the data of a benchmark is fetched to, by configuration of the data set."""
    source = STUDY.benchmarks[name]
    return {
        config: f"resources/benchmarks/{source.dataset}/{config}/{source.revision}"
        for config in source.configs
    }


def benchmarks_of(split):
    """The benchmarks of a split by domain, without what needs no benchmark (the validation loss)."""
    suite = getattr(STUDY.suites, split)
    return {domain: name for domain, name in suite.items() if name in STUDY.benchmarks}


def benchmark_json(split):
    """The fetched data of a split's benchmarks."""
    folders = [
        folder
        for name in benchmarks_of(split).values()
        for folder in benchmark_folders(name).values()
    ]
    return [f"{folder}/fetched.json" for folder in dict.fromkeys(folders)]


def expert_weights(pool, base, seed):
    """The adapters of a pool's members, by name."""
    return {
        name: f"{RESULTS}/experts/{base}/{expert.path.format(seed=seed)}/adapter_model.safetensors"
        for name, expert in POOLS[pool].members.items()
    }


def members_of(wildcards):
    return list(expert_weights(wildcards.pool, wildcards.base, wildcards.seed).values())


# Fetching
def hub_folder_ready(_):
    """A folder hub that this workflow makes itself is an input of whatever is fetched from it."""
    return f"{DEMO_HUB}.json" if STUDY.hub.folder == DEMO_HUB else []


# Training
def training_options(wildcards):
    """The config's training section, as options of train_expert.py."""
    kept = STUDY.experts.durations
    options = {
        "base-id": STUDY.bases[wildcards.base].model,
        "dtype": STUDY.bases[wildcards.base].dtype,
        "mode": TRAIN.mode,
        "rank": TRAIN.rank,
        "alpha": TRAIN.alpha or TRAIN.rank,
        "learning-rate": TRAIN.learning_rate,
        "warmup-steps": TRAIN.warmup_steps,
        "batch-size": TRAIN.batch_size,
        "micro-batch-size": TRAIN.micro_batch_size or TRAIN.batch_size,
        "save-every": TRAIN.save_every,
        "max-steps": TRAIN.max_steps,
        "multiples": " ".join(map(str, kept.multiples_of_optimum or [])),
        "steps": " ".join(map(str, kept.steps or [])),
    }
    return [f"--{name} {value}" for name, value in options.items() if value != ""]


# Merging
def written_as(form):
    """A constraint to the merge ids that are written in a form: as an adapter, or as a dense task vector."""
    return one_of(
        merge_id
        for merge_id, (name, _) in MERGE_IDS.items()
        if STUDY.methods[name].written_as == form
    )


def selection_of(wildcards):
    """What validation chose, for a method that chooses; nothing for its candidates and for other methods."""
    name, candidate = MERGE_IDS[wildcards.method]
    chooses = STUDY.methods[name].by and candidate is None
    return SELECTION.format(**{**wildcards, "method": name}) if chooses else []


def statistics_of(wildcards):
    """What was measured of a pool's members on their data, by name, for a method that needs it."""
    kind = registry.get(STUDY.methods[MERGE_IDS[wildcards.method][0]].method).statistics
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


def merge_options(wildcards):
    """The method with its hyper-parameters, the experts by name and path, and what validation chose.

    From wildcards alone: Snakemake does not compare params that are made from inputs, and would keep old merges.
    """
    name, candidate = MERGE_IDS[wildcards.method]
    method = STUDY.methods[name]
    parameters = dict(method.parameters)
    if candidate is not None:
        parameters |= grid.candidates(method)[candidate]
    weights = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
    selection = selection_of(wildcards)
    return [
        f"--method {method.method}",
        f"--space {method.space}",
        f"--output {method.written_as}",
        f"--preset {method.preset}" if method.preset else "",
        *(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}"
            for key, value in parameters.items()
        ),
        *(f"--expert {name}={Path(file).parent}" for name, file in weights.items()),
        *(
            f"--statistics {name}={file}"
            for name, file in statistics_of(wildcards).items()
        ),
        f"--selection {selection}" if selection else "",
    ]


def merged_weights(merge_id):
    """The weights of a merged artifact, by the form that it is written in."""
    form = STUDY.methods[MERGE_IDS[merge_id][0]].written_as
    file = {
        "delta": "task_vector.safetensors",
        "adapter": "adapter_model.safetensors",
    }[form]
    return f"{MERGED}/{file}".replace("{method}", merge_id)


# Evaluating
def suite_options(split):
    """The benchmarks of a split, and how they are run, as options of evaluate.py."""
    options = STUDY.evaluation
    return [
        f"--split {split}",
        *(
            f"--benchmark {domain}:{name}:{STUDY.benchmarks[name].task}:{STUDY.benchmarks[name].metric}:{next(iter(benchmark_folders(name).values()))}"
            for domain, name in benchmarks_of(split).items()
        ),
        f"--batch-size {options.batch_size}",
        f"--seed {options.seed}",
        f"--sandbox {options.sandbox}",
        "--cache resources/cache",
        f"--tasks {options.tasks}" if options.tasks else "",
    ]


def evaluations_of(subject, split):
    """The files that the evaluation of a subject (a path below results/{study}/) ends in."""
    parts = ["parquet", "samples.parquet", "json"]
    return [f"{EVALUATIONS}/{subject}/{split}.{part}" for part in parts]


def subject_options(wildcards, output):
    """The subjects that these outputs are of; for merged ones their members, from which they must differ."""
    folders = [Path(file).parent for file in output if file.endswith(".json")]
    subjects = [f"--subject {folder.relative_to(EVALUATIONS)}" for folder in folders]
    if "pool" in wildcards.keys():
        weights = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
        subjects += [
            f"--member {name}={Path(file).parent}" for name, file in weights.items()
        ]
    return subjects


# Selecting
def validation_of(subjects):
    return [f"{EVALUATIONS}/{subject}/validation.parquet" for subject in subjects]


def candidates_of(wildcards):
    """The validation files of a method's candidates."""
    merged = f"merged/{wildcards.base}/{wildcards.pool}"
    return validation_of(
        f"{merged}/{merge_id}/seed-{wildcards.seed}"
        for merge_id in CANDIDATES
        if MERGE_IDS[merge_id][0] == wildcards.method
    )


def experts_of(wildcards):
    """The validation files of a pool's members."""
    return validation_of(
        f"experts/{wildcards.base}/{expert.path.format(seed=wildcards.seed)}"
        for expert in POOLS[wildcards.pool].experts
    )


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
