"""Merge LoRA experts into one set of weights: a dense task vector (delta space) or an adapter (adapter space)."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mergetime import provenance
from mergetime.errors import UserError, main
from mergetime.merging import registry
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TASK_VECTOR, read_json
from mergetime.merging.method import SPACES, nearest
from mergetime.merging.spaces import merge


class Explain(argparse.Action):
    """Print what a method does and exit, whatever else is given or missing."""

    def __call__(self, parser: argparse.ArgumentParser, _: Any, values: Any, __: str | None = None) -> None:
        print(registry.explain(values))
        parser.exit()


def pair(text: str) -> tuple[str, str]:
    """``name=value`` in two."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name, value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, epilog=f"Methods: {', '.join(registry.names())}.", allow_abbrev=False
    )
    add = made.add_argument
    add("--expert", type=pair, action="append", required=True, metavar="NAME=PATH", help="an adapter folder; repeat")
    base = made.add_mutually_exclusive_group()
    base.add_argument("--base-sha256", metavar="HEX", help="the base's digest; experts trained on another are refused")
    base.add_argument("--base", type=Path, metavar="JSON", help="the base's fetched.json, to take that digest from")
    add("--method", required=True, help="id of the merge method")
    add("--set", type=pair, action="append", default=[], metavar="PARAM=VALUE", help="a hyper-parameter; repeat")
    spaces = "; ".join(f"{name}: {meaning}" for name, meaning in SPACES.items())
    add("--space", choices=sorted(SPACES), default="delta", help=f"where to merge ({spaces}); default delta")
    add("--seed", type=int, default=1, help="seed of stochastic methods; default 1")
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


def digest_of(base: Path) -> str:
    """The digest of the base's weights that its ``fetched.json`` holds."""
    digest = read_json(base, f"base {base}").get("facts", {}).get("weights_sha256")
    if not digest:
        raise UserError(f"base {base}: has no facts.weights_sha256; fetch the base again")
    return str(digest)


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


def inputs_of(experts: Sequence[tuple[str, Path]], selection: Path | None) -> dict[str, Path]:
    """The files that determine the result, by name."""
    files = {f"expert {name}": folder / ADAPTER_WEIGHTS for name, folder in experts}
    files |= {f"config of {name}": folder / ADAPTER_CONFIG for name, folder in experts}
    return files | ({"selection": selection} if selection else {})


def run(arguments: Sequence[str] | None = None) -> None:
    """Merge as the command line says."""
    started = time.time()
    given = parser().parse_args(arguments)
    method = registry.get(given.method)
    selection: Mapping[str, Any] = provenance.read(given.selection)["facts"] if given.selection else {}
    params = method.validate({**read_settings(given.set), **selection.get("chosen", {})})
    if method.needs_members and "members" not in selection:
        raise UserError(f"{method.id}: needs a --selection that names its members")
    experts = restrict([(name, Path(path)) for name, path in given.expert], selection.get("members"), given.selection)
    base_sha256 = digest_of(given.base) if given.base else given.base_sha256
    summary = merge(
        experts,
        method=method.id,
        params=params,
        space=given.space,
        seed=given.seed,
        out=given.out,
        base_sha256=base_sha256,
    )
    provenance.record(
        given.out / "merged.json",
        stage="merge_experts",
        inputs=inputs_of(experts, given.selection),
        config={
            "method": method.id,
            "space": given.space,
            "params": params,
            "seed": given.seed,
            "members": sorted(name for name, _ in experts),
            "base_sha256": base_sha256,
        },
        facts=summary,
        started=started,
        outputs=[path for name in (TASK_VECTOR, ADAPTER_WEIGHTS) if (path := given.out / name).exists()],
    )


if __name__ == "__main__":
    main(run)
