"""The jobs of a study, from Snakemake's dry run: there is no second copy of the grid here."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergetime.core.errors import UserError

STAGES = (
    "fetch", "prepare", "train", "measure", "merge", "evaluate", "select", "judge", "collect", "compare", "publish",
    "other",
)  # fmt: skip
"""In the order that a study goes through them; ``compare``: the study beside published numbers and claims, ``other``:
rules whose name says nothing."""

_HUB = re.compile(r"make_\w+_hub")
"""Rules that make a folder hub, which stands for the hub that others are fetched from."""
# The first that fits: judge_claims judges claims by the results, and no responses by a model.
_PREFIXES = {
    "fetch_": "fetch",
    "import_": "fetch",
    "prepare_": "prepare",
    "train_": "train",
    "measure_": "measure",
    "merge_": "merge",
    "evaluate_": "evaluate",
    "select_": "select",
    "judge_claims": "compare",
    "judge_": "judge",
    "collect_": "collect",
    "describe_": "collect",
    "compare_": "compare",
    "audit_": "compare",
    "make_": "publish",
}
_RULE = re.compile(r"^(?:local)?(?:rule|checkpoint) (\S+):$")
_FIELD = re.compile(r"^    (input|output|benchmark|wildcards): (.*)$")
_ERROR = re.compile(r"\w(?:Error|Exception)\b")
_REMOVED = re.compile(r"^Would remove temporary output (\S+?)\.?$")


def stem_of(rule: str) -> str:
    """A rule's name without the number of a batch."""
    return re.sub(r"_\d+$", "", rule)


@dataclass(frozen=True)
class Job:
    """A job with outputs, as a dry run lists it; ``benchmark`` is the file of Snakemake's own record."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    wildcards: Mapping[str, str] = field(default_factory=dict, hash=False)
    benchmark: str | None = None

    @property
    def stem(self) -> str:
        """The rule, without the number of a batch."""
        return stem_of(self.rule)

    @property
    def stage(self) -> str:
        """One of :data:`STAGES`."""
        if _HUB.fullmatch(self.rule):
            return "fetch"
        return next((stage for prefix, stage in _PREFIXES.items() if self.rule.startswith(prefix)), "other")

    @property
    def folders(self) -> int:
        """How many folders it writes to: the subjects of an evaluation, as each has its own."""
        return len({Path(file).parent for file in self.outputs})

    @property
    def split(self) -> str:
        """Validation or test: of its wildcards, or of the names of its outputs."""
        return self.wildcards.get("split") or Path(self.outputs[0]).name.split(".")[0]


@dataclass(frozen=True)
class DryRun:
    """What a target takes: all its jobs, the ones among them to do, and the files removed before the end."""

    jobs: tuple[Job, ...]
    to_do: frozenset[Job]
    removed: frozenset[str]


def parse(text: str) -> tuple[list[Job], frozenset[str]]:
    """The jobs that a dry run prints, and the temporary files that it would remove.

    Jobs without outputs are left out: they are names for targets, and run nothing.
    """
    rule: str | None = None
    fields: dict[str, str] = {}
    jobs, removed = [], set[str]()
    for line in [*text.splitlines(), "rule end:"]:
        if found := _RULE.match(line):
            if rule and "output" in fields:
                jobs.append(_job(rule, fields))
            rule, fields = found[1], {}
        elif found := _FIELD.match(line):
            # What stands twice is text inside a reason, which comes after the fields read here.
            fields.setdefault(found[1], found[2])
        elif found := _REMOVED.match(line):
            removed.add(found[1])
    return jobs, frozenset(removed)


def _job(rule: str, fields: Mapping[str, str]) -> Job:
    pairs = (pair.partition("=") for pair in fields.get("wildcards", "").split(", ") if pair)
    return Job(
        rule=rule,
        inputs=tuple(fields["input"].split(", ")) if fields.get("input") else (),
        outputs=tuple(fields["output"].split(", ")),
        wildcards={name: value for name, _, value in pairs},
        benchmark=fields.get("benchmark"),
    )


def dry_run(target: str, configs: Sequence[Path], settings: Mapping[str, Any]) -> DryRun:
    """Ask Snakemake twice what ``target`` takes: all jobs, and those still to do. Nothing runs, nothing is locked.

    Args:
        target: a rule or a file.
        configs: config files, as after --configfile.
        settings: keys that stand after --config.

    Raises:
        UserError: with Snakemake's own line, if the target or the config is wrong.
    """
    everything, removed = parse(_snakemake(target, configs, settings, ["--forceall"]))
    to_do, _ = parse(_snakemake(target, configs, settings, []))
    return DryRun(tuple(everything), frozenset(to_do), removed)


def _snakemake(target: str, configs: Sequence[Path], settings: Mapping[str, Any], more: Iterable[str]) -> str:
    # The workflow's own profile stays: what it says of checksums decides what is to do.
    command = [sys.executable, "-m", "snakemake", target, "--dry-run", "--nolock", "--nocolor", "--cores", "1", *more]
    command += ["--configfile", *map(str, configs)]
    if settings:
        command += ["--config", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{target}: {_why(done.stderr + done.stdout)}")
    return done.stdout


def _why(text: str) -> str:
    """The lines of Snakemake's output that say what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = next((line for line in lines if line.startswith("error: ")), None)
    if ours:
        return ours.removeprefix("error: ")
    start = next((number for number, line in enumerate(lines) if _ERROR.search(line)), -3)
    return " ".join(lines[start:][:3])
