"""The smallest study with every stage, from nothing to tables and figures."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.checking import ROOT, Figure, Setting

MADE = (".git", ".venv", ".snakemake", "resources", "results", "logs", "benchmarks", ".cache", "__pycache__")
"""What of the repository's folder is no source."""


def check(setting: Setting) -> Iterator[Figure]:
    """Snakemake in a copy of the project: the same at all shapes."""
    folder = setting.work / "smoke"
    shutil.rmtree(folder, ignore_errors=True)

    def made(where: str, names: list[str]) -> list[str]:
        return [name for name in names if name in MADE and Path(where) == ROOT]

    shutil.copytree(ROOT, folder, ignore=made)
    command = [sys.executable, "-m", "snakemake", "--quiet", "rules", "--configfile", "config/smoke.yaml"]
    # Snakemake's other scheduler takes a solver, which is packed for nobody.
    command += ["--scheduler", "greedy"]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    inside = [path.replace(str(ROOT), str(folder)) if path.startswith(str(ROOT)) else path for path in paths]
    # Rules say python, which may be another one here, or none, and know nothing of packages beside the project.
    programs = folder / ".programs"
    programs.mkdir()
    python = programs / "python"
    packages = shlex.quote(os.pathsep.join(inside))
    python.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="$PYTHONPATH":{packages}\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    environment = {"PYTHONPATH": os.pathsep.join(inside), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True)
    yield Figure("study", time.monotonic() - started, "s", "config/smoke.yaml")
    tables = list((folder / "results/smoke/tables").glob("*.md"))
    yield Figure("tables", len(tables), "", passed=bool(tables))
