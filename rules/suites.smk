# How evaluate.smk and select.smk take a study's suites: benchmarks, judges, subjects, and what chooses between them.
def losses_of(split):
    """Where the validation loss stands for a benchmark: the domains' own validation examples, by domain."""
    return {
        domain: f"{RESULTS}/data/{domain}/validation.parquet"
        for domain in getattr(STUDY.suites, split)
        if domain not in benchmarks_of(split)
    }


@functools.cache
def suite_data(split):
    """What the subjects are evaluated on: the fetched data of benchmarks, and prepared validation examples."""
    return benchmark_json(split) + list(losses_of(split).values())


def benchmark_option(domain, name):
    """A benchmark as evaluate.py takes it. Its judge is left out: another judge needs no other responses."""
    source = STUDY.benchmarks[name]
    fields = ("task", "metric", "weights", "shots", "limit", "max_new_tokens")
    folders = {
        str(config): folder for config, folder in benchmark_folders(name).items()
    }
    return (
        {"name": name, "domain": domain}
        | {field: getattr(source, field) for field in fields}
        | {"folders": folders}
    )


@functools.cache
def suite_options(split):
    """The benchmarks of a split, and how they are run, as options of evaluate.py.

    For params always through a function: Snakemake would take the braces of a string for wildcards.
    """
    options = STUDY.evaluation
    benchmarks = [
        json.dumps(benchmark_option(domain, name))
        for domain, name in benchmarks_of(split).items()
    ]
    return [
        f"--split {split}",
        *(f"--benchmark {shlex.quote(text)}" for text in benchmarks),
        *(
            f"--validation-loss {domain}={file}"
            for domain, file in losses_of(split).items()
        ),
        f"--backend {options.backend}",
        f"--dtype {options.dtype}",
        f"--batch-size {options.batch_size}",
        f"--seed {options.seed}",
        "" if options.chat_template else "--no-chat-template",
        f"--sandbox {options.sandbox}",
        "--cache resources/cache",
        f"--tasks {options.tasks}" if options.tasks else "",
    ]


def evaluations_of(subject, split):
    """The files that the evaluation of a subject (a path below results/{study}/) ends in."""
    parts = ["parquet", "samples.parquet", "json"]
    return [f"{EVALUATIONS}/{subject}/{split}.{part}" for part in parts]


def made_by(name, files):
    """These files as a rule's outputs: Snakemake then asks no other rule whether it makes them."""
    outputs = {str(file): file for file in getattr(rules, name).output}
    return [outputs[file] for file in files]


def subject_options(subjects):
    """What is evaluated, as options: paths below results/{study}/."""
    return [f"--subject {subject}" for subject in subjects]


def merged_subject_options(wildcards, merge_ids):
    """The merged models that one job evaluates, and their members, from which they must differ."""
    folder = f"merged/{wildcards.base}/{wildcards.pool}"
    members = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
    return [
        *subject_options(
            f"{folder}/{merge_id}/seed-{wildcards.seed}" for merge_id in merge_ids
        ),
        *(f"--member {name}={Path(file).parent}" for name, file in members.items()),
    ]


def judges_of(split):
    """The judges of a split's benchmarks, by benchmark."""
    names = benchmarks_of(split).values()
    return {
        name: STUDY.judges[STUDY.benchmarks[name].judge]
        for name in names
        if STUDY.benchmarks[name].judge
    }


JUDGED = [split for split in SPLITS if judges_of(split)]


def judge_folder(judge):
    return f"resources/models/{judge.model}/{judge.revision}"


@functools.cache
def judge_models(split):
    """The fetched judges of a split."""
    folders = [judge_folder(judge) for judge in judges_of(split).values()]
    return [f"{folder}/fetched.json" for folder in dict.fromkeys(folders)]


@functools.cache
def judge_options(split):
    """How a split's responses are judged, as options of scripts that ask judges; for params through a function too."""
    judgements = [
        {
            "benchmark": name,
            "kind": judge.kind,
            "model": judge_folder(judge),
            "dtype": judge.dtype,
            "batch_size": judge.batch_size,
            "weights": STUDY.benchmarks[name].weights,
        }
        for name, judge in judges_of(split).items()
    ]
    return [f"--judge {shlex.quote(json.dumps(one))}" for one in judgements]


def judged_results():
    """What judges said of every subject, in the splits where they are asked."""
    return [
        f"{EVALUATIONS}/{subject.path}/{split}.judged.parquet"
        for subject in grid.subjects(STUDY)
        for split in subject.splits
        if split in JUDGED
    ]


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


def judged_of(scores):
    """What judges said of the responses behind these validation files; nothing where validation has no judge."""
    judged = [file.removesuffix(".parquet") + ".judged.parquet" for file in scores]
    return judged if "validation" in JUDGED else []


def soup_judge_options(wildcards):
    """How soups are judged, and what judges said of the members, as options of select_soup.py."""
    judged = judged_of(experts_of(wildcards))
    names = POOLS[wildcards.pool].members if judged else []
    return judge_options("validation") + [
        f"--judged {name}={file}" for name, file in zip(names, judged, strict=True)
    ]
