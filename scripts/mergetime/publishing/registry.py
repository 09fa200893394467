"""The tables that every study has, whichever paper it follows or none. The others belong to papers: mergetime.papers.

A new one is a function and one entry here: the rules, their inputs and the targets follow. Imported while Snakemake
parses the workflow: nothing heavy is imported here.
"""

from mergetime.publishing.entry import Entry
from mergetime.publishing.needs import TRAINING

TABLES = {
    "sources": Entry("publishing.tables.sources:sources", ("study",)),
    "health": Entry("publishing.tables.health:health", ("results", "curves"), (TRAINING,), benchmarks=True),
}
