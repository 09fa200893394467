# So that a run that ended badly, and a clock that was wrong, cost the next run nothing.
import time

from mergetime.core.locking import remove_stale_locks


def date_inputs_from_the_future():
    """Set the files that jobs of this run will read, and that a wrong clock has dated ahead, to the present.

    Snakemake fails a job, and removes what it made, if that is older than an input; but it says so only afterwards.
    """
    files = {Path(file) for job in workflow.dag.needrun_jobs() for file in job.input}
    ahead = [
        file for file in files if file.exists() and file.stat().st_mtime > time.time()
    ]
    for file in ahead:
        os.utime(file)
    if ahead:
        print(
            f"{len(ahead)} files were dated in the future, such as {min(ahead)}; they are of now",
            file=sys.stderr,
        )


# A job of a cluster outlives its run, and must not be taken for it.
shell.executable(
    "bash" if workflow.remote_exec else f"{workflow.basedir}/rules/site/shell/bash"
)
if workflow.is_main_process and not workflow.output_settings.dryrun:
    THIS_RUN = remove_stale_locks(Path(".snakemake"), on_cluster=ON_CLUSTER)
