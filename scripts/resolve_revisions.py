"""Compare the commits that a config pins with the hub's, and write those that it does not have yet."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mergetime.config.fields import UNRESOLVED
from mergetime.config.reading import load, parse
from mergetime.core import yaml_text
from mergetime.core.atomic import write_atomically
from mergetime.core.errors import UserError, main
from mergetime.hub import fetching, revisions
from mergetime.hub.revisions import Answer, Comparison, Kind


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="exits with 1 if a commit differs or is missing")
    parser.add_argument("--config", type=Path, required=True, help="the study")
    parser.add_argument("--write", action="store_true", help=f"put the hub's commits where it says '{UNRESOLVED}'")
    parser.add_argument("--move", action="store_true", help="with --write, also where the hub has a newer commit")
    parser.add_argument("--endpoint", help="address of the hub, instead of the config's")
    fetching.add_common_options(parser)
    options = parser.parse_args()
    if options.move and not options.write:
        raise UserError("--move changes the config; add --write")

    study = load(options.config)
    if not options.endpoint:
        options.endpoint = study.hub.endpoint
        options.hub_folder = options.hub_folder or (study.hub.folder and Path(study.hub.folder))
    with fetching.connected(options):
        comparisons = revisions.compare(revisions.pins(study), _ask)
    _print(comparisons)

    writable = {"new", "moved"} if options.move else {"new"} if options.write else set()
    commits = {
        comparison.pin.key: comparison.answer.commit
        for comparison in comparisons
        if comparison.status in writable and comparison.answer.commit
    }
    if commits:
        # Bytes, so that line ends stay what they are.
        text = revisions.replaced(options.config.read_bytes().decode(), commits, str(options.config))
        parse(yaml_text.parse(text, str(options.config)), str(options.config))
        write_atomically(options.config, text)
        print(f"{options.config}: {len(commits)} written", file=sys.stderr)
    if any(comparison.status != "same" and comparison.pin.key not in commits for comparison in comparisons):
        raise SystemExit(1)


def _ask(kind: Kind, name: str) -> Answer:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info: Any = HfApi().repo_info(name, repo_type=kind, revision="main")
    except GatedRepoError:
        return Answer(None, "gated")
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return Answer(None, "gone")
    except Exception as error:
        raise fetching.explain(error, kind, name, "main") from error
    return Answer(info.sha)


def _print(comparisons: list[Comparison]) -> None:
    """A row per key, in columns as wide as they must be."""
    rows = [
        (
            ".".join(comparison.pin.key),
            comparison.pin.kind,
            comparison.pin.name,
            comparison.pin.revision,
            comparison.answer.commit or "-",
            comparison.status,
        )
        for comparison in comparisons
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main(run)
