"""Time the collecting of a study's evaluations, and measure the memory that it takes.

The study is the paper's, with drawn scores: each of its evaluations has as many items as --rows asks for in all.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mergetime.config.reading import load
from mergetime.study.layout import Layout
from mergetime.study.subjects import subjects, trainings

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "config/paper.yaml"
TEXT = "Each of five shelves carries eleven books of which three are lent. " * 6
"""As long as a prompt and its response: what collecting has to pass over."""


def samples(rows: int, benchmark: str) -> pd.DataFrame:
    """One evaluation by item, as evaluate.py writes it: half of the rows are the primary metric's."""
    draw = np.random.default_rng(1)
    items = [f"{draw.integers(2**62):064x}" for _ in range(rows // 2)]
    frame = pd.DataFrame({"benchmark": benchmark, "domain": "math", "task": benchmark, "item": items, "stem": items})
    frame = frame.assign(score=(draw.random(len(frame)) < 0.5).astype(float), request=TEXT, response=TEXT, target="18")
    metrics = [frame.assign(metric="exact_match,flexible-extract", primary=True)]
    return pd.concat([*metrics, frame.assign(metric="exact_match,strict-match", primary=False)], ignore_index=True)


def metrics(scores: pd.DataFrame) -> pd.DataFrame:
    """The means of an evaluation, as evaluate.py writes them."""
    groups = scores.groupby(["benchmark", "domain", "metric", "primary"], sort=False)["score"]
    means = groups.agg(value="mean", stderr="sem", items="size").reset_index()
    return means.assign(task_hash="0" * 64, harness_version="0.4.13")


def make(folder: Path, rows: int) -> int:
    """Write the study below ``folder``; the rows by item that it has."""
    study, paths = load(CONFIG), Layout(str(folder))
    shutil.copy(CONFIG, folder / "study.json")
    evaluations = [(subject, split) for subject in subjects(study) for split in subject.splits]
    scores = samples(rows // len(evaluations), "gsm8k")
    files = {"parquet": metrics(scores), "samples.parquet": scores}
    files |= {f"judged.{suffix}": frame.assign(benchmark="harmbench")[:2] for suffix, frame in files.items()}
    for suffix, frame in files.items():
        frame.to_parquet(folder / f"one.{suffix}", index=False)
    for subject, split in evaluations:
        for suffix in files:
            out = Path(paths.evaluation(subject.path, split, suffix))
            out.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / f"one.{suffix}", out)
    spent = {"machine": {}, "wall_s": 1.0, "peak_memory_mb": 1}
    for subject, _ in evaluations:
        if subject.pool and subject.method and study.methods[subject.method].by and subject.candidate is None:
            chosen = Path(paths.selection(subject.base, subject.pool.id, subject.method, subject.seed or 0))
            chosen.parent.mkdir(parents=True, exist_ok=True)
            chosen.write_text(json.dumps(spent | {"facts": {"chosen": {"lambda": 1.0}}}))
    curve = pd.DataFrame([dict.fromkeys(("step", "tokens"), 0) | {"validation_loss": 2.0}])
    for name in ("train_loss", "validation_accuracy", "gradient_norm", "learning_rate", "tokens_per_second"):
        curve[name] = np.nan
    curve = curve.assign(gpu_memory_mb=np.nan, energy_j=np.nan)
    facts = {"t_star": 200, "t_star_boundary": None, "last_step": 1000}
    for training in trainings(study):
        out = Path(paths.folder(training.path))
        out.mkdir(parents=True)
        curve.to_parquet(paths.curve(training.path), index=False)
        Path(paths.expert_record(training.path)).write_text(json.dumps(spent | {"facts": facts}))
    return len(evaluations) * len(scores)


def measured(scripts: Path, folder: Path) -> tuple[float, float, float]:
    """CPU seconds, seconds on the clock and peak memory in MB of collect_results.py."""
    environment = os.environ | {"PYTHONPATH": str(scripts), "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(scripts / "collect_results.py"), "--study", str(folder / "study.json")]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(folder)], env=environment)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {scripts}/collect_results.py failed")
    return used.ru_utime + used.ru_stime, time.monotonic() - started, used.ru_maxrss / 1024


def main() -> None:
    """Measure this version, and another one beside it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of samples.parquet; default 5,000,000")
    parser.add_argument(
        "--scripts", type=Path, action="append", help="scripts/ of a version; repeat; default: this one"
    )
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = make(folder, options.rows)
        for scripts in options.scripts or [ROOT / "scripts"]:
            cpu_s, wall_s, memory_mb = measured(scripts.resolve(), folder)
            found = pq.ParquetFile(folder / "samples.parquet")
            if found.metadata.num_rows < rows:
                sys.exit(f"error: {found.metadata.num_rows} rows of {rows} collected")
            size = (folder / "samples.parquet").stat().st_size / 1e6
            print(
                f"{scripts}: {found.metadata.num_rows:,} rows in {found.num_row_groups} row groups, "
                f"{cpu_s:.1f} CPU s, {wall_s:.1f} s, {memory_mb:,.0f} MB of memory, a file of {size:.1f} MB"
            )


if __name__ == "__main__":
    main()
