"""Make a hub in a folder that holds everything a study fetches: tiny models and few rows, at its config's commits."""

import argparse
import json
from pathlib import Path

from mergetime.config.reading import parse
from mergetime.core.atomic import write_atomically
from mergetime.core.errors import main


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True, help="JSON: the study's config")
    parser.add_argument("--base", type=Path, required=True, help="folder of the demo's base")
    parser.add_argument("--folder", type=Path, required=True, help="the hub; what is there is replaced")
    parser.add_argument("--out", type=Path, required=True, help="JSON: the commit of each repository")
    options = parser.parse_args()

    # Imports torch and transformers, so after --help.
    from mergetime.demo.rehearsal import make

    study = parse(json.loads(options.study.read_text()), str(options.study))
    commits = make(study, options.base, options.folder)
    write_atomically(options.out, json.dumps(commits, indent=1) + "\n")


if __name__ == "__main__":
    main(run)
