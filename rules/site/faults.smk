# So that a run that ended badly costs the next run nothing.
from mergetime.core.locking import remove_stale_locks

# A job of a cluster outlives its run, and must not be taken for it.
shell.executable(
    "bash" if workflow.remote_exec else f"{workflow.basedir}/rules/site/shell/bash"
)
if workflow.is_main_process and not workflow.output_settings.dryrun:
    THIS_RUN = remove_stale_locks(Path(".snakemake"), on_cluster=ON_CLUSTER)
