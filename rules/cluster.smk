# What a cluster needs beside resources.
import subprocess
import time

from snakemake.exceptions import WorkflowError

CANCEL_WITHIN_S = 300


# `use rule ... with` does not pass on that a rule is local.
localrules:
    fetch_benchmark,
    collect_bias_variance,
    collect_mode_connectivity,


def jobs_of_earlier_runs():
    """The ids of this user's jobs in SLURM that are of this folder and of rules of this workflow."""
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i|%Z|%k"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    jobs = [line.split("|", maxsplit=2) for line in listed.splitlines()]
    names = one_of(rule.name for rule in workflow.rules)
    ours = re.compile(rf"rule_({names})(_wildcards_.*)?\s*")
    here = Path.cwd().resolve()
    return [
        number
        for number, folder, comment in jobs
        if Path(folder).resolve() == here and ours.fullmatch(comment)
    ]


def cancel_jobs_of_earlier_runs():
    """Cancel what a killed Snakemake left behind, and return when it has ended.

    Nobody waits for these jobs any more, and they would write the same files as their successors. The lock of this
    folder is held by now, so they are of no run that lives.
    """
    left = jobs_of_earlier_runs()
    if not left:
        return
    print(f"Cancelling jobs of an earlier run: {' '.join(left)}", file=sys.stderr)
    subprocess.run(["scancel", *left], check=True, timeout=60)
    until = time.monotonic() + CANCEL_WITHIN_S
    while left := jobs_of_earlier_runs():
        if time.monotonic() > until:
            raise WorkflowError(f"jobs of an earlier run do not end: {' '.join(left)}")
        time.sleep(2)


onstart:
    if workflow.executor_plugin.name == "slurm":
        cancel_jobs_of_earlier_runs()
