"""Merge experts, LoRA adapters or full checkpoints, into an adapter, a dense task vector or a full checkpoint."""

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergetime.artifacts.companions import companions
from mergetime.artifacts.files import DTYPES
from mergetime.artifacts.forms import FORMS
from mergetime.artifacts.vocabulary import EXTRA_ROWS
from mergetime.core import hashing, yaml_text
from mergetime.core.errors import UserError, main
from mergetime.merging import claiming, engine, jobs, mergekit_yaml, options, registry
from mergetime.merging.method import SPACES
from mergetime.merging.preview import Preview

DECIDED = (
    "expert",
    "base",
    "base_sha256",
    "method",
    "preset",
    "set",
    "space",
    "statistics",
    "selection",
    "tokenizer_from",
)
"""The options that a file of mergekit's takes the place of."""


class Explain(argparse.Action):
    """Print what a method does and exit, whatever else is given or missing."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, __: str | None = None) -> None:
        try:
            print(registry.explain(values))
        except ValueError as error:
            parser.exit(1, f"error: {error}\n")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog=f"Methods: {', '.join(registry.names())}.", allow_abbrev=False
    )
    add = made.add_argument
    options.add_options(made, required=False)
    add(
        "--mergekit",
        type=Path,
        metavar="FILE",
        help="merge what this YAML of mergekit says, in place of --expert, --base, --method and its settings",
    )
    base = made.add_mutually_exclusive_group()
    base.add_argument("--base-sha256", metavar="HEX", help="the base's digest; experts trained on another are refused")
    base.add_argument(
        "--base",
        type=Path,
        metavar="PATH",
        help="the base's folder, which full checkpoints and --output checkpoint need, or its fetched.json",
    )
    add(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="what the base's tensors are for: a YAML file like those in scripts/mergetime/architectures, where none "
        "of those serves the base's model type",
    )
    _add_output(made)
    add("--method", help="id of the merge method")
    add("--preset", help="named hyper-parameters that reproduce another implementation; --explain lists them")
    add(
        "--set",
        type=options.pair,
        action="append",
        default=[],
        metavar="PARAM=VALUE",
        help="a hyper-parameter, as YAML; repeat",
    )
    spaces = "; ".join(f"{name}: {meaning}" for name, meaning in SPACES.items())
    add("--space", choices=sorted(SPACES), help=f"where to merge ({spaces}); default delta")
    add("--seed", type=int, help="seed; stochastic methods need one")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute; default cpu")
    add(
        "--statistics",
        type=options.pair,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="what measure_expert.py measured of an expert, for methods that need data; repeat",
    )
    add(
        "--selection",
        type=Path,
        metavar="JSON",
        help="what validation chose: facts: {chosen: {param: value}, members: [name]}",
    )
    add(
        "--dry-run", action="store_true", help="check experts and settings, say what would be merged, and write nothing"
    )
    add(
        "--explain", action=Explain, metavar="METHOD", help="print a method's formula, sources and parameters, and exit"
    )
    return made


def _add_output(made: argparse.ArgumentParser) -> None:
    """Add what says where the merge is written, and as what."""
    add = made.add_argument_group("output").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder, or that of an earlier merge")
    forms = "; ".join(f"{form.name}: {form.meaning}" for form in FORMS.values())
    add(
        "--output",
        choices=sorted(FORMS),
        help=f"what to write ({forms}); default: adapter where that is exact (elsewhere it needs --rank), else delta; "
        "with --mergekit a checkpoint",
    )
    add(
        "--dtype",
        choices=sorted(DTYPES),
        help="of a task vector or checkpoint; default float32, with --mergekit what the file says",
    )
    add(
        "--rank",
        type=options.positive,
        help="largest rank of an adapter, by truncated SVD; the error is reported",
    )
    add(
        "--tokenizer-from",
        metavar="NAME",
        help="the expert whose tokenizer and chat template a checkpoint gets; default: the base's",
    )
    ways = "; ".join(f"{name}: {meaning}" for name, meaning in EXTRA_ROWS.items())
    add(
        "--extra-rows",
        choices=list(EXTRA_ROWS),
        default="refuse",
        help=f"where experts' vocabularies have other rows than the base's ({ways}); default refuse; rows of the base "
        "that an expert lacks count as unchanged",
    )


def read_settings(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Hyper-parameters from the command line, each value read as YAML; one given twice is an error."""
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if name in settings:
            raise UserError(f"--set {name} is given twice")
        settings[name] = yaml_text.parse(value, f"--set {name}", keys_as_text=True)
    return settings


def progress() -> Any:
    """A bar with a rate on a terminal, where a merge takes more than a few seconds; nothing in a log."""
    from tqdm import tqdm

    bar = tqdm(unit=" entries", unit_scale=True, disable=None, leave=False, delay=3)

    def update(done: int, whole: int) -> None:
        bar.total = whole
        bar.update(done - bar.n)

    return update


def by_options(given: argparse.Namespace) -> tuple[jobs.MergeJob, jobs.MergeArguments]:
    """The merge that the command line says."""
    job = jobs.MergeJob(
        out=given.out,
        method=given.method,
        space=given.space or "delta",
        form=given.output,
        preset=given.preset,
        parameters=read_settings(given.set),
        statistics={name: Path(path) for name, path in given.statistics},
        selection=given.selection,
        dtype=given.dtype or "float32",
        rank=given.rank,
        extra_rows=given.extra_rows,
    )
    told = jobs.arguments_of(
        job, options.experts_of(given), base=given.base, base_sha256=given.base_sha256, seed=given.seed
    )
    return job, told


def by_mergekit(given: argparse.Namespace) -> tuple[jobs.MergeJob, jobs.MergeArguments, str | None]:
    """The merge that mergekit's YAML says, and the expert whose tokenizer it gets; what changes nothing is printed."""
    merge = mergekit_yaml.read(given.mergekit)
    form = given.output or "checkpoint"
    dtype = given.dtype or merge.dtype or mergekit_yaml.stored_dtype(merge, str(given.mergekit))
    job = jobs.MergeJob(
        out=given.out,
        method=merge.method,
        form=form,
        preset=mergekit_yaml.PRESET,
        parameters=dict(merge.params),
        dtype="float32" if form == "adapter" else dtype,
        rank=given.rank,
        extra_rows=given.extra_rows,
        mergekit=given.mergekit,
    )
    told = jobs.arguments_of(job, merge.experts, base=merge.base, seed=given.seed)
    told["by_tensor"] = merge.by_tensor
    if merge.of_weights:
        # Whole models are averaged, and the first stands in for a base that none of them may have been trained on.
        told["base_sha256"] = None
    for note in merge.notes:
        print(f"note: {given.mergekit}: {note}")
    return job, told, merge.tokenizer_from if form == "checkpoint" else None


def run(arguments: Sequence[str] | None = None) -> None:
    """Merge as the command line says."""
    commands = parser()
    given = commands.parse_args(arguments)
    started = time.time()
    if given.mergekit:
        if decided := [name for name in DECIDED if getattr(given, name) not in (None, [])]:
            commands.error(f"--{decided[0].replace('_', '-')} is decided by the file of --mergekit; leave it out")
        job, told, tokenizer_from = by_mergekit(given)
    else:
        if absent := [name for name in ("expert", "method") if not getattr(given, name)]:
            commands.error(f"the following arguments are required: --{', --'.join(absent)} (or --mergekit)")
        job, told, tokenizer_from = *by_options(given), given.tokenizer_from
    folders = [*([told["base"]] if told["base"] else []), *(folder for _, folder in told["experts"])]
    beside = {path.relative_to(folder).as_posix() for folder in folders for path in companions(folder)}
    merge = functools.partial(
        engine.merge,
        **told,
        threads=given.threads,
        device=given.device,
        architecture=given.architecture,
        tokenizer_from=tokenizer_from,
    )
    if given.dry_run:
        from mergetime.planning.costs import merge_seconds  # loads what a merge has no use for

        claiming.check_claim(job.out, beside)
        would_be = Preview(**merge(dry_run=True))
        seconds = merge_seconds(would_be.members * sum(would_be.entries.values()))
        print(*would_be.lines(seconds), sep="\n")
        return
    with claiming.claimed(job.out, beside) as written, hashing.digests(given.threads) as digests:
        digests.begin(options.weights_of(told["experts"]))
        summary = merge(progress=progress())
        summary = jobs.record(job, told, summary, started, digests, written())
    print(jobs.report(summary, job.method))


if __name__ == "__main__":
    main(run)
