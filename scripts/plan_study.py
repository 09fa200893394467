"""Say what a study, or one target of it, will cost: jobs, GPU-hours, disk, downloads, and what was assumed for that.

Nothing runs, is fetched or is locked; Snakemake is asked what there is to do. `snakemake plan` calls this.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from snakemake.utils import update_config

from mergetime.config import reading
from mergetime.core import yaml_text
from mergetime.core.errors import UserError, main
from mergetime.planning import rates
from mergetime.planning.jobs import dry_run
from mergetime.planning.prices import Model, price
from mergetime.planning.report import report


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, nargs="+", required=True, help="the study, as given to snakemake")
    parser.add_argument("--target", default="all", help="a rule (table_3) or a file; default: all")
    parser.add_argument(
        "--config", action="extend", nargs="*", default=[], metavar="KEY=JSON", help="keys in place of the configfile's"
    )
    parser.add_argument(
        "--measured", action="store_true", help="print the rates of what has run, as lines for the table of rates"
    )
    options = parser.parse_args()
    settings = dict(_setting(text) for text in options.config)
    study = reading.parse(_merged(options.configfile, settings), ", ".join(map(str, options.configfile)))
    if options.measured:
        # Imports pandas, which a plan does not need.
        from mergetime.planning import recorded

        print(recorded.lines(recorded.figures(study, Path(), _command(options.configfile))))
        return
    model = Model(study, Path(), rates.load(Path(study.plan.rates)))
    print(report(options.target, price(dry_run(options.target, options.configfile, settings), model), model))


def _command(files: list[Path]) -> str:
    return " ".join(["snakemake --configfile", *map(str, files)])


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value if equals else "")
    except json.JSONDecodeError as error:
        raise UserError(f"--config {text}: give KEY=JSON ({error})") from error


def _merged(files: list[Path], settings: dict[str, Any]) -> dict[str, Any]:
    """The config as Snakemake makes it of several files and single keys."""
    merged: dict[str, Any] = {}
    for file in files:
        update_config(merged, yaml_text.read(file) or {})
    update_config(merged, settings)
    return merged


if __name__ == "__main__":
    main(run)
