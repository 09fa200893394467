"""Merge experts, LoRA adapters or full checkpoints, into an adapter, a dense task vector or a full checkpoint."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergetime.artifacts.files import DTYPES
from mergetime.artifacts.forms import FORMS, weight_files
from mergetime.core import provenance
from mergetime.core.digests import code_digest
from mergetime.core.errors import UserError, main
from mergetime.core.words import nearest
from mergetime.merging import options, registry
from mergetime.merging.engine import merge
from mergetime.merging.method import SPACES


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
    options.add_options(made)
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
    add("--method", required=True, help="id of the merge method")
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
    add("--space", choices=sorted(SPACES), default="delta", help=f"where to merge ({spaces}); default delta")
    forms = "; ".join(f"{form.name}: {form.meaning}" for form in FORMS.values())
    add(
        "--output",
        choices=sorted(FORMS),
        help=f"what to write ({forms}); default: adapter where that is exact (elsewhere it needs --rank), else delta",
    )
    add("--dtype", choices=sorted(DTYPES), default="float32", help="of a task vector or checkpoint; default float32")
    add(
        "--rank",
        type=options.positive,
        help="largest rank of an adapter, by truncated SVD; the error is reported",
    )
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
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the merged weights and merged.json")
    add(
        "--explain", action=Explain, metavar="METHOD", help="print a method's formula, sources and parameters, and exit"
    )
    return made


def restrict(
    experts: Sequence[tuple[str, Path]], members: Sequence[str] | None, selection: Path | None
) -> list[tuple[str, Path]]:
    """The experts that the selection names as members, or all where it names none."""
    if members is None:
        return list(experts)
    names = [name for name, _ in experts]
    for member in members:
        if member not in names:
            raise UserError(f"{selection}: member {member!r} is no expert of this merge{nearest(member, names)}")
    return [(name, folder) for name, folder in experts if name in members]


def read_settings(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Hyper-parameters from the command line, each value read as YAML; one given twice is an error."""
    settings: dict[str, Any] = {}
    for name, value in pairs:
        if name in settings:
            raise UserError(f"--set {name} is given twice")
        settings[name] = yaml.safe_load(value)
    return settings


def inputs_of(
    experts: Sequence[tuple[str, Path]],
    statistics: Mapping[str, Path],
    selection: Path | None,
    architecture: Path | None = None,
) -> dict[str, Path]:
    """The files and folders that determine the result, by name."""
    files = options.files_of(experts) | {f"statistics of {name}": path for name, path in statistics.items()}
    given = {"selection": selection, "architecture": architecture}
    return files | {name: path for name, path in given.items() if path}


def progress() -> Any:
    """A bar on a terminal, nothing in a log."""
    from tqdm import tqdm

    bar = tqdm(unit=" entries", unit_scale=True, disable=None, leave=False)

    def update(done: int, whole: int) -> None:
        bar.total = whole
        bar.update(done - bar.n)

    return update


def report(summary: Mapping[str, Any], method: str, peak_mb: int) -> None:
    """Print what a person wants to know of a merge."""
    norms = ", ".join(f"{name} {norm:.4g}" for name, norm in summary["expert_norms"].items())
    print(f"{method}: {summary['entries']:,} entries in {summary['seconds']} s, peak memory {peak_mb} MB")
    print(f"norms: {norms}; merged {summary['merged_norm']:.4g}")
    if "sparsity" in summary:
        print(f"zeros {summary['sparsity']:.1%}, entries with a sign conflict {summary['sign_conflicts']:.1%}")
    print(f"written as {summary['output']}, relative error of that {summary['relative_error']:.2g}")


def run(arguments: Sequence[str] | None = None) -> None:
    """Merge as the command line says."""
    started = time.time()
    given = parser().parse_args(arguments)
    method = registry.get(given.method)
    selection: Mapping[str, Any] = provenance.read(given.selection)["facts"] if given.selection else {}
    settings = {**read_settings(given.set), **selection.get("chosen", {})}
    params = method.validate(settings, given.preset)
    if method.needs_members and "members" not in selection:
        raise UserError(f"{method.id}: needs a --selection that names its members")
    experts = restrict(options.experts_of(given), selection.get("members"), given.selection)
    base_sha256 = options.base_sha256(given.base, experts) if given.base else given.base_sha256
    statistics = {name: Path(path) for name, path in given.statistics}
    summary = merge(
        experts,
        method=method.id,
        params=params,
        space=given.space,
        seed=given.seed,
        out=given.out,
        output=given.output,
        dtype=given.dtype,
        rank=given.rank,
        base=given.base if given.base and given.base.is_dir() else None,
        base_sha256=base_sha256,
        statistics=statistics or None,
        threads=given.threads,
        device=given.device,
        architecture=given.architecture,
        progress=progress(),
    )
    record = given.out / "merged.json"
    provenance.record(
        record,
        stage="merge_experts",
        inputs=inputs_of(experts, statistics, given.selection, given.architecture),
        config={
            "method": method.id,
            "preset": given.preset,
            "space": given.space,
            "params": params,
            "seed": given.seed,
            "members": sorted(name for name, _ in experts),
            "base_sha256": base_sha256,
            "output": summary["output"],
            "dtype": given.dtype,
            "rank": given.rank,
        },
        facts=summary,
        started=started,
        outputs=weight_files(given.out),
        code=code_digest("merge_pool", "merge_experts", members=(registry.file_of(method.id),)),
    )
    report(summary, method.id, provenance.read(record)["peak_memory_mb"])


if __name__ == "__main__":
    main(run)
