"""LaTeX compiles what the tables say, and what is wide fits a page."""

import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mergetime import papers
from mergetime.config import reading
from mergetime.publishing import formats
from mergetime.publishing.inputs import BenchmarkFacts, Inputs
from tests.unit.test_publishing import curve, curves, frame, merged, row, samples

PDFLATEX = shutil.which("pdflatex")
ROOT = Path(__file__).parents[2]
BASES = ["qwen3.5-0.8b", "100%_larger & #2", "a-base-with-a-name-as-long-as-they-come"]
DOMAINS = ["math", "code", "instruction", "multilingual", "safety"]
DURATIONS = ["0.25x", "0.5x", "0.75x", "1x", "1.5x", "2x", "3x", "5x"]
METHODS = ["simple_average", "task_arithmetic", "ties", "dare_ties", "greedy_soup"]
PREAMBLE = r"""\documentclass[11pt]{article}
\usepackage[margin=1in]{geometry}
"""


def scores(generator: random.Random) -> dict[str, dict[str, float]]:
    """Scores by duration and domain, of ten items each."""
    return {duration: {domain: generator.randrange(11) / 10 for domain in DOMAINS} for duration in DURATIONS}


def study() -> Inputs:
    """Random results of a study at full size: three bases, five methods in two spaces, eight durations."""
    generator = random.Random(0)
    rows: list[dict[str, Any]] = []
    for base in BASES:
        rows += [row("base", domain, 0.2, base=base) for domain in DOMAINS]
        rows += [
            row("expert", domain, generator.random(), base=base, expert=domain, duration=duration, seed=1)
            for domain in DOMAINS
            for duration in DURATIONS
        ]
        for method in METHODS:
            rows += merged(scores(generator), method=method, base=base)
            rows += merged(scores(generator), method=f"{method}_adapter", algorithm=method, space="adapter", base=base)
    results = frame(rows).assign(t_star_at_boundary=lambda found: found["duration"].eq("5x"))
    by_base = [curves(*[curve(domain) for domain in DOMAINS]).assign(base=base) for base in BASES]
    return Inputs(
        {"results": results, "samples": samples(results, 10), "curves": pd.concat(by_base)},
        study=reading.load(ROOT / "config/paper.yaml").model_dump(mode="json"),
        benchmarks={name: BenchmarkFacts(0.0, False) for name in set(results["benchmark"])},
    )


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    """Every table of the study as LaTeX."""
    made = study()
    return {name: formats.latex(entry.make(made)) for name, entry in papers.get("duration").tables.items()}


def compiled(body: str, folder: Path) -> str:
    """The log of pdflatex, with its lines whole again."""
    assert PDFLATEX is not None
    packages = dict.fromkeys(re.findall(r"% needs (\\usepackage\{.*\})", body))
    (folder / "all.tex").write_text(f"{PREAMBLE}{''.join(packages)}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return (folder / "all.log").read_text(errors="replace")


@pytest.mark.skipif(PDFLATEX is None, reason="there is no pdflatex; apt-get install texlive-latex-recommended")
def test_every_table_compiles_and_fits_a_page(tables: dict[str, str], tmp_path: Path) -> None:
    log = compiled("\\clearpage\n".join(tables.values()), tmp_path)
    wrong = [line for line in log.splitlines() if re.search(r"Overfull|too large|Missing character|undefined", line)]
    assert wrong == []


def test_a_table_of_several_sets_of_columns_keeps_its_number(tables: dict[str, str]) -> None:
    tex = tables["health"]
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 3
    assert tex.count(r"\addtocounter{table}{-1}") == tex.count("(continued)}") == 2
    assert tex.count(r"\label{tab:health}") == 1
    assert r"\begin{tabular}[b]{@{}r@{}}Interior\\minimum\end{tabular}" in tex


def test_words_are_broken_and_numbers_are_not(tables: dict[str, str]) -> None:
    assert r"\begin{tabularx}{\linewidth}" in tables["table_1"]
    assert r"CohereLabs/\allowbreak{}aya\_\allowbreak{}dataset" in tables["table_1"]
    assert "tabularx}" not in tables["table_3"].partition("\n")[2]
