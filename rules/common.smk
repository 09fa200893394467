import functools
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from mergetime.config.reading import parse as parse_study
from mergetime.artifacts import forms
from mergetime.study import layout
from mergetime.study.durations import durations
from mergetime.core import yaml_text
from mergetime.core.errors import UserError, one_line
from mergetime.core.digests import code_digest
from mergetime.workflow import (
    analysing,
    batching,
    collecting,
    digests,
    evaluating,
    fetching,
    merging,
    publishing,
    selecting,
)
from mergetime.workflow.grid import Grid

CONFIG = ", ".join(os.path.relpath(file) for file in workflow.configfiles)
PLAN_FOR = config.pop("plan_for", "all")
try:
    # Snakemake has taken the last of two equal keys.
    for file in workflow.configfiles:
        yaml_text.read(Path(file))
    STUDY = parse_study(dict(config), CONFIG)
    GRID = Grid.of(STUDY)
    SPLITS = GRID.splits
    TASKS = {split: digests.of_tasks(STUDY, split) for split in SPLITS}
except UserError as error:
    sys.exit(f"error: {one_line(error)}")
except ValueError as error:
    sys.exit(f"error: {CONFIG}: {one_line(error)}")

PATHS = GRID.paths
JUDGED = evaluating.judged_splits(GRID)
MERGE_BATCHES = batching.merge_batches(GRID)
DURATIONS = durations(STUDY)
PAPER = publishing.paper_of(STUDY)
# What can be made of this study; its paper may have more, which a study of its kind could have.
TABLES = publishing.tables(STUDY)
FIGURES = publishing.figures(STUDY)
POOL = publishing.shown_pool(STUDY)


def one_of(names):
    """A wildcard's constraint to known names; nothing matches where there is none."""
    return "|".join(map(re.escape, names)) or "(?!)"


# Thin functions of wildcards, for many rules
model_json = lambda wildcards: fetching.base_record(STUDY, wildcards.base)
benchmark_json = functools.partial(fetching.benchmark_records, STUDY)
# Base, pool and seed: what most functions of a pool begin with.
pool_of = lambda wildcards: (wildcards.base, wildcards.pool, wildcards.seed)
members_of = lambda wildcards: merging.members(GRID, *pool_of(wildcards))
suite_of = lambda wildcards: evaluating.suite_files(GRID, wildcards.split)
suite_json = lambda wildcards: evaluating.suite_json(
    GRID, wildcards.base, wildcards.split
)
tasks_of = lambda wildcards: TASKS[wildcards.split]


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
