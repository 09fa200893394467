# How the analyses of analyse.smk take a study's pools: what is measured of them, and on which examples.
from mergetime.study import layout
from mergetime.study.measurements import domains_of, jobs

BATCH = f"--batch-size {STUDY.evaluation.batch_size} --dtype {STUDY.evaluation.dtype}"
VALIDATION = expand(
    f"{RESULTS}/data/{{domain}}/validation.parquet", domain=STUDY.domains
)


def measured(analysis):
    """Where the measurement of a pool stands, without the ending, for an analysis."""
    return (
        layout.of(STUDY)
        .measurement(analysis, "{base}", "{pool}", "{seed}")
        .removesuffix(".parquet")
    )


def measurements(analysis):
    """The measurements that an analysis is collected from."""
    return [job.file(layout.of(STUDY)) for job in jobs(STUDY, analysis)]


def expert_options(wildcards):
    """A pool's members, as options of the scripts that measure them."""
    weights = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
    return [f"--expert {name}={Path(file).parent}" for name, file in weights.items()]


def merged_options(wildcards):
    """A pool's merged models, as options of measure_bias_variance.py."""
    return [
        f"--merged {method}={MERGED.format(**{**wildcards, 'method': method})}"
        for method in FINAL
    ]


def path_domains(wildcards):
    """The domain of each member of a pool that has one: what paths are measured between."""
    return domains_of(STUDY, POOLS[wildcards.pool])


def path_data(wildcards):
    """The validation examples of these domains, by domain."""
    return {
        domain: f"{RESULTS}/data/{domain}/validation.parquet"
        for domain in path_domains(wildcards).values()
    }


def path_options(wildcards):
    """What mode connectivity is measured between and on, as options of measure_connectivity.py."""
    weights = expert_weights(wildcards.pool, wildcards.base, wildcards.seed)
    domains = path_domains(wildcards)
    settings = STUDY.mode_connectivity
    whole_models = TRAIN and TRAIN.mode == "full"
    return [
        *(f"--expert {name}={Path(weights[name]).parent}" for name in domains),
        *(f"--domain {name}={domain}" for name, domain in domains.items()),
        *(f"--data {domain}={file}" for domain, file in path_data(wildcards).items()),
        f"--alphas {' '.join(map(str, settings.alphas))}",
        f"--spaces {'delta' if whole_models else ' '.join(settings.spaces)}",
        f"--examples {settings.examples}",
    ]
