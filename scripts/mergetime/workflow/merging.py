"""Merging pools: their members, what merges need besides, the files that they end in, and what a job is told."""

import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mergetime.artifacts import forms
from mergetime.merging import registry
from mergetime.modalities import parts
from mergetime.study import layout
from mergetime.workflow.grid import Grid

RECORD = "merged.json"
"""The record beside a merge's weights."""


@functools.cache
def member_weights(grid: Grid, base: str, pool: str, seed: str) -> dict[str, str]:
    """The main file of weights of each member of a pool, by name."""
    return {
        name: f"{grid.paths.folder(expert.subject(base, seed))}/" + grid.form_of(expert).weights
        for name, expert in grid.pools[pool].members.items()
    }


def members(grid: Grid, base: str, pool: str, seed: str) -> list[str]:
    """The weights of a pool's members, as inputs."""
    return list(member_weights(grid, base, pool, seed).values())


def expert_options(grid: Grid, base: str, pool: str, seed: str, option: str = "--expert") -> list[str]:
    """A pool's members as options NAME=FOLDER."""
    weights = member_weights(grid, base, pool, seed)
    return [f"{option}={name}={Path(file).parent}" for name, file in weights.items()]


def selections(grid: Grid, base: str, pool: str, seed: str, merge_ids: Iterable[str]) -> dict[str, str]:
    """What validation chose, by merge id, for methods that choose; nothing for their candidates and other methods."""
    chosen = {}
    for merge_id in merge_ids:
        merge = grid.merges[merge_id]
        if grid.study.methods[merge.method].by and merge.candidate is None:
            chosen[merge_id] = grid.paths.selection(base, pool, merge.method, seed)
    return chosen


def statistics(grid: Grid, base: str, pool: str, seed: str, merge_id: str) -> dict[str, str]:
    """What was measured of a pool's members on their data, by name, for a method that needs it."""
    kind = registry.get(grid.study.methods[grid.merges[merge_id].method].method).statistics
    if kind is None:
        return {}
    members = grid.pools[pool].members.items()
    return {name: grid.paths.statistic(expert.subject(base, seed), kind) for name, expert in members}


def needed(grid: Grid, base: str, pool: str, seed: str, merge_ids: Iterable[str]) -> list[str]:
    """What merges read beside the experts, as inputs: what validation chose, and what was measured of experts."""
    merge_ids = list(merge_ids)
    measured = [statistics(grid, base, pool, seed, merge_id).values() for merge_id in merge_ids]
    chosen = selections(grid, base, pool, seed, merge_ids).values()
    return [*chosen, *(file for files in measured for file in files)]


def measured_data(grid: Grid, expert: str) -> str:
    """The training data that an expert is measured on, by its path below the base."""
    first, *rest = expert.split("/")
    imported = layout.from_hub(rest[0]) == expert
    domain = grid.study.experts.imported[rest[0]].domain if imported else first
    return grid.paths.data(str(domain), "train")


def measure_options(grid: Grid, base: str, kind: str) -> list[str]:
    """The config's settings of a kind of statistic, as options of measure_expert.py."""
    settings = getattr(grid.study.statistics, kind)
    return [
        f"--examples={grid.study.statistics.examples}",
        *(f"--set={name}={value}" for name, value in settings.items()),
        *parts.options(grid.study.bases[base].modality),
    ]


@functools.cache
def form_of(grid: Grid, pool: str, merge_id: str) -> forms.Form:
    """What a merge is written as: an adapter where that is exact, else (and of whole models) a dense task vector."""
    written_as = grid.study.methods[grid.merges[merge_id].method].written_as
    return forms.merged_form(written_as, grid.members_form(pool))


def merged_weights(grid: Grid, pool: str, merge_id: str) -> str:
    """The pattern of the weights of a merge, of pools like this one."""
    folder = grid.paths.folder(layout.merged("{base}", "{pool}", merge_id, "{seed}"))
    return f"{folder}/{form_of(grid, pool, merge_id).weights}"


def all_weights(grid: Grid, merge_ids: Iterable[str], pool: str) -> list[str]:
    """The patterns of the weights of merges."""
    return [merged_weights(grid, pool, merge_id) for merge_id in merge_ids]


def files(grid: Grid, merge_ids: Iterable[str], pool: str) -> list[str]:
    """The patterns of all files that merges end in, of pools like this one, the weights of each first."""
    return [
        f"{Path(merged_weights(grid, pool, merge_id)).parent}/{name}"
        for merge_id in merge_ids
        for name in (*form_of(grid, pool, merge_id).files, RECORD)
    ]


def is_temporary(grid: Grid, file: str) -> bool:
    """Whether a file of a merge is a dense task vector that the config says not to keep: it takes 4 bytes a weight."""
    return not grid.study.keep_dense_merges and Path(file).name == forms.DELTA.weights


def merge_json(grid: Grid, base: str, pool: str, seed: str, merge_ids: Sequence[str]) -> str:
    """The merges of a pool that one job makes, for merge_pool.py.

    From wildcards and the config alone: Snakemake does not compare params that are made from inputs, and would keep
    old merges.
    """
    return json.dumps([_merge(grid, base, pool, seed, merge_id) for merge_id in merge_ids], sort_keys=True)


def _merge(grid: Grid, base: str, pool: str, seed: str, merge_id: str) -> dict[str, Any]:
    """One merge: the method with its hyper-parameters, what was measured, what validation chose."""
    merge = grid.merges[merge_id]
    method = grid.study.methods[merge.method]
    given = {
        "preset": method.preset,
        "parameters": method.parameters | dict(merge.changes),
        "statistics": statistics(grid, base, pool, seed, merge_id),
        "selection": selections(grid, base, pool, seed, [merge_id]).get(merge_id),
    }
    return {
        "out": grid.paths.folder(layout.merged(base, pool, merge_id, seed)),
        "method": method.method,
        "space": method.space,
        "form": form_of(grid, pool, merge_id).name,
    } | {key: value for key, value in given.items() if value}
