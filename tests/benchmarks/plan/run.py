"""Compare the plan of a study, made as if nothing had run, with what a finished run of it took, stage by stage."""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from mergetime.config import reading
from mergetime.core import yaml_text
from mergetime.core.errors import main
from mergetime.planning import rates
from mergetime.planning.job_times import seconds_in
from mergetime.planning.jobs import STAGES, dry_run
from mergetime.planning.prices import Model

ROOT = Path(__file__).resolve().parents[3]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/demo.yaml"))
    parser.add_argument(
        "--finished", type=Path, default=ROOT, help="folder that the study has run in; default: this one"
    )
    options = parser.parse_args()
    study = reading.parse(yaml_text.read(options.configfile), str(options.configfile))
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing is there but the config, so that no size, token or second is known from a run.
        (Path(folder) / "config").symlink_to(ROOT / "config")
        model = Model(study, Path(folder), rates.load(ROOT / study.plan.rates))
        for job in dry_run("all", [options.configfile], {}).jobs:
            file = options.finished / job.benchmark if job.benchmark else None
            wall_s = seconds_in(file) if file else None
            if file is None or wall_s is None:
                continue
            # Snakemake samples the seconds on the CPU, and sees none of a job that ends at once.
            spent = (1.0, model.estimate(job).seconds, wall_s, seconds_in(file, "cpu_time") or 0.0)
            for total in (totals[job.stage], totals["in all"]):
                total[:] = [sum(pair) for pair in zip(total, spent, strict=True)]
    print(
        "| stage | jobs | planned s | s on the CPU | planned / on the CPU | s on the clock |\n|---|---:|---:|---:|---:|---:|"
    )
    for stage in (*STAGES, "in all"):
        if stage in totals:
            jobs, planned_s, wall_s, cpu_s = totals[stage]
            ratio = f"{planned_s / cpu_s:.2f}" if cpu_s else ""
            print(f"| {stage} | {jobs:.0f} | {planned_s:.0f} | {cpu_s:.0f} | {ratio} | {wall_s:.0f} |")


if __name__ == "__main__":
    main(run)
