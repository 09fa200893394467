# Where rules run with `--sdm apptainer`: in images of containers/build.sh, or of a registry that they were pushed to.
from mergetime.workflow import containers

container_of = functools.partial(
    containers.image,
    place=os.environ.get("MERGETIME_CONTAINERS", "containers"),
    root=Path(workflow.basedir),
)
EVALUATE_IN = container_of(containers.evaluating(STUDY.evaluation.backend))
