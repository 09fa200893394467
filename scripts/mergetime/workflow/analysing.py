"""Analyses of pools: what is measured of them, on which examples, and what the tables are collected from."""

from mergetime.artifacts import forms
from mergetime.modalities import parts
from mergetime.study import layout
from mergetime.study.measurements import domains_of, jobs
from mergetime.study.methods import merges_of
from mergetime.workflow.grid import Grid
from mergetime.workflow.merging import all_weights, member_weights


def measured(grid: Grid, analysis: str, suffix: str = "parquet") -> str:
    """The pattern of a measurement of a pool."""
    return grid.paths.measurement(analysis, "{base}", "{pool}", "{seed}", suffix)


def measurements(grid: Grid, analysis: str) -> list[str]:
    """The measurements that an analysis is collected from."""
    return [job.file(grid.paths) for job in jobs(grid.study, analysis)]


def model_options(grid: Grid, base: str) -> list[str]:
    """How models are run over examples, as options of the scripts that measure pools."""
    evaluation, modality = grid.study.evaluation, grid.study.bases[base].modality
    return [f"--batch-size={evaluation.batch_size}", f"--dtype={evaluation.dtype}", *parts.options(modality)]


def reported(grid: Grid, pool: str) -> list[str]:
    """The ids of a pool's merges that are reported."""
    return [merge.id for merge in merges_of(grid.study, grid.pools[pool]) if merge.candidate is None]


def merged(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """The weights of these merges, as inputs."""
    patterns = all_weights(grid, reported(grid, pool), pool)
    return [pattern.format(base=base, pool=pool, seed=seed) for pattern in patterns]


def merged_options(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """These merges, as options of measure_bias_variance.py."""
    return [
        f"--merged={merge_id}={grid.paths.folder(layout.merged(base, pool, merge_id, seed))}"
        for merge_id in reported(grid, pool)
    ]


def validation_data(grid: Grid) -> dict[str, str]:
    """The validation examples of every domain of the study."""
    return {domain: grid.paths.data(domain, "validation") for domain in grid.study.domains}


def path_data(grid: Grid, pool: str) -> dict[str, str]:
    """The validation examples of the domains of a pool's members, which paths are measured on."""
    domains = domains_of(grid.study, grid.pools[pool]).values()
    return {domain: grid.paths.data(domain, "validation") for domain in domains}


def data_options(data: dict[str, str]) -> list[str]:
    """Examples by domain, as options of the scripts that measure pools."""
    return [f"--data={domain}={file}" for domain, file in data.items()]


def path_options(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """What mode connectivity is measured between and on, as options of measure_connectivity.py."""
    weights = member_weights(grid, base, pool, seed)
    domains = domains_of(grid.study, grid.pools[pool])
    settings = grid.study.mode_connectivity
    spaces = ["delta"] if grid.members_form(pool) == forms.CHECKPOINT else settings.spaces
    return [
        *(f"--expert={name}={weights[name].rpartition('/')[0]}" for name in domains),
        *(f"--domain={name}={domain}" for name, domain in domains.items()),
        *data_options(path_data(grid, pool)),
        *("--alphas", *map(str, settings.alphas)),
        *("--spaces", *spaces),
        f"--examples={settings.examples}",
    ]
