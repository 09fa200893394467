# What jobs ask for is a table in scripts/mergetime/workflow/resources.py; here is what this run knows of its machine.
import yaml

from mergetime.workflow import cluster, resources

# Local executors have no number of nodes; jobs on a cluster read this file again, with --mode remote.
ON_CLUSTER = workflow.remote_exec or workflow.resource_settings.nodes is not None
MACHINE = resources.Machine(
    on_cluster=ON_CLUSTER,
    counts_gpus="gpu" in workflow.global_resources,
    counts_memory=ON_CLUSTER or "mem_mb" in workflow.global_resources,
    one_gpu=str(Path(workflow.basedir) / "profiles/gpu/one_gpu.sh"),
    site=(
        yaml.safe_load((Path(workflow.basedir) / "slurm/site.yaml").read_text())
        if ON_CLUSTER
        else {}
    ),
)


def shares(rule, values, attempt):
    """What a further attempt asks for. Without SLURM nobody says what a job ran out of, and both grow."""
    if workflow.executor_plugin.name != "slurm":
        return attempt, attempt
    return cluster.shares(rule, values, attempt)


threads_of = functools.partial(resources.threads_of, study=STUDY, machine=MACHINE)
resources_of = functools.partial(
    resources.resources_of, study=STUDY, machine=MACHINE, shares=shares
)
