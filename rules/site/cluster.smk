# What a cluster needs beside resources.
import functools
import subprocess
import time

from mergetime.core.locking import leave_locks_to_a_person
from snakemake.exceptions import WorkflowError

CANCEL_WITHIN_S = 300
# SLURM warns a job up to a minute early, and its end is seen a little later than that it has written its checkpoint.
WARNED_S = 420
# What SLURM's daemon writes into a job's log: with cgroups, and where it polls.
OUT_OF_MEMORY = re.compile(r"^slurmstepd.*(oom.kill|memory limit)", re.MULTILINE)


# `use rule ... with` does not pass on that a rule is local.
localrules:
    fetch_benchmark,
    collect_bias_variance,
    collect_mode_connectivity,


def jobs_of_this_folder(*options):
    """This user's jobs in SLURM that are of this folder: number, state, time left and comment of each."""
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i|%T|%L|%Z|%k", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    jobs = [line.split("|", maxsplit=4) for line in listed.splitlines()]
    here = Path.cwd().resolve()
    return [
        (number, state, left, comment.strip())
        for number, state, left, folder, comment in jobs
        if Path(folder).resolve() == here
    ]


def jobs_of_earlier_runs():
    """The ids of jobs of this folder that are of rules of this workflow."""
    names = one_of(rule.name for rule in workflow.rules)
    ours = re.compile(rf"rule_({names})(_wildcards_.*)?")
    return [
        number
        for number, _, _, comment in jobs_of_this_folder()
        if ours.fullmatch(comment)
    ]


def cancel_jobs_of_earlier_runs():
    """Cancel what a killed Snakemake left behind, and return when it has ended.

    Nobody waits for these jobs any more, and they would write the same files as their successors. This run is alone in
    the folder, so they are of no run that lives. Snakemake's lock alone does not say so: it lets runs that make
    different files, such as two studies, work in one folder.
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


def seconds(left):
    """SLURM's days-hours:minutes:seconds as seconds; infinity where there is no number."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", left):
        return float("inf")
    days, _, clock = left.rpartition("-")
    parts = reversed(clock.split(":"))
    return int(days or 0) * 86400 + sum(
        int(part) * 60**power for power, part in enumerate(parts)
    )


@functools.cache
def ran_out_of(rule, values, attempt):
    """What this attempt, the last until now, of a job of a rule ran out of - memory, time, or neither.

    Both where SLURM does not answer or has forgotten the job. Kept, because SLURM forgets.
    """
    name = re.sub("[/]", "_", "_".join(values))
    comment = f"rule_{rule}_wildcards_{name}" if name else f"rule_{rule}"
    try:
        jobs = jobs_of_this_folder("--states=all")
    except (OSError, subprocess.SubprocessError):
        return {"memory", "time"}
    mine = [job for job in jobs if job[3] == comment]
    if not mine:
        return {"memory", "time"}
    number, state, left, _ = max(mine, key=lambda job: int(job[0]))
    log = Path("logs/slurm", f"rule_{rule}", name, f"{number}.log")
    said = log.read_text(errors="replace") if log.is_file() else ""
    if state == "OUT_OF_MEMORY" or OUT_OF_MEMORY.search(said):
        return {"memory"}
    stopped_in_time = state == "FAILED" and rule in EXTRA and seconds(left) < WARNED_S
    return {"time"} if state == "TIMEOUT" or stopped_in_time else set()


def shares(rule, values, attempt):
    """How many times its memory and its time this attempt of a job asks for: once, and as often as it ran out of them.

    Without SLURM nobody says what a job ran out of, and both grow.
    """
    if workflow.executor_plugin.name != "slurm":
        return attempt, attempt
    short = [ran_out_of(rule, values, before) for before in range(1, attempt)]
    return tuple(1 + sum(what in one for one in short) for what in ("memory", "time"))


onstart:
    date_inputs_from_the_future()
    if workflow.executor_plugin.name == "slurm":
        if THIS_RUN.alone:
            cancel_jobs_of_earlier_runs()
    elif workflow.non_local_exec:
        # Nobody cancels what a killed run leaves behind there.
        leave_locks_to_a_person(Path(".snakemake"))
