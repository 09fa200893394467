# What is done before the first job.
from mergetime.core.locking import leave_locks_to_a_person
from mergetime.workflow.faults import date_to_present
from snakemake.exceptions import WorkflowError


# `use rule ... with` does not pass on that a rule is local.
localrules:
    fetch_benchmark,
    collect_bias_variance,
    collect_mode_connectivity,


onstart:
    # Its limit of 100 jobs a second has the scheduler look again a second after every look, for every job that has
    # ended: a third of a core after 200 jobs, and more with each.
    workflow.scheduler.job_rate_limiter = None
    date_to_present(
        file for job in workflow.dag.needrun_jobs() for file in job.input
    )
    if workflow.executor_plugin.name == "slurm":
        if THIS_RUN.alone:
            try:
                cluster.cancel_jobs_of_earlier_runs(
                    rule.name for rule in workflow.rules
                )
            except UserError as error:
                raise WorkflowError(str(error)) from error
    elif workflow.non_local_exec:
        # Nobody cancels what a killed run leaves behind there.
        leave_locks_to_a_person(Path(".snakemake"))
