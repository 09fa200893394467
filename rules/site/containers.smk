# Where rules run with `--sdm apptainer`: in images of containers/build.sh, or of a registry that they were pushed to.
import hashlib

CONTAINERS = os.environ.get("MERGETIME_CONTAINERS", "containers")


def container_of(image):
    """An image's place. The digest of all that it is made from is part of it: another lock makes jobs run again."""
    definition = "vllm" if image == "vllm" else "mergetime"
    made_from = (
        "envs/torch.txt",
        "envs/requirements.lock",
        f"containers/{definition}.def",
    )
    content = b"".join(
        (Path(workflow.basedir) / file).read_bytes() for file in made_from
    )
    digest = hashlib.sha256(content).hexdigest()[:12]
    if "://" in CONTAINERS:
        return f"{CONTAINERS}/{image}:{digest}"
    return f"{CONTAINERS}/{image}-{digest}.sif"


EVALUATE_IN = container_of("vllm" if STUDY.evaluation.backend == "vllm" else "evaluate")
