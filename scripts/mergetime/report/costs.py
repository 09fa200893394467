"""What the jobs of a study took, from the records that Snakemake leaves of them (its ``benchmark`` files)."""

import json
from pathlib import Path

import pandas as pd

from mergetime.planning.jobs import stem_of


def by_rule(folders: list[Path]) -> pd.DataFrame:
    """Jobs, wall seconds and the largest memory in MB by rule, all batches of a rule together.

    Not CPU seconds: Snakemake samples them, so that what a job does after its last sample is missing.

    Args:
        folders: folders of benchmark files; those of them that exist.

    Returns:
        Index rule, columns jobs, wall and peak; empty where there are no records.
    """
    rows = [
        {"rule": stem_of(file.relative_to(folder).parts[0].removesuffix(".jsonl")), **json.loads(line)}
        for folder in folders
        for file in sorted(folder.rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    jobs = pd.DataFrame(rows, columns=["rule", "s", "max_rss"])
    # Jobs that end too soon to be seen have "NA" for their memory.
    jobs["max_rss"] = pd.to_numeric(jobs["max_rss"], errors="coerce").fillna(0)
    return jobs.groupby("rule").agg(jobs=("s", "size"), wall=("s", "sum"), peak=("max_rss", "max"))
