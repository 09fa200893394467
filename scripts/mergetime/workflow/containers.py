"""Where the images are that rules run in with ``--sdm apptainer``, as containers/build.sh names them.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import functools
import hashlib
from pathlib import Path

_LOCKS = ("envs/torch.txt", "envs/requirements.lock", "envs/gpu.lock")
_VLLM = "vllm"


def image(name: str, *, place: str, root: Path) -> str:
    """The file or address of an image.

    It has the digest of all that the image is made from, so that jobs run again where the lock is another one.

    Args:
        name: ``train``, ``evaluate``, ``publish`` or ``vllm``.
        place: a folder, or a registry with its scheme, such as oras://registry.example.org/mergetime.
        root: the repository.
    """
    digest = _digest(root, _VLLM if name == _VLLM else "mergetime")
    return f"{place}/{name}:{digest}" if "://" in place else f"{place}/{name}-{digest}.sif"


def evaluating(backend: str) -> str:
    """The name of the image that evaluates with a backend."""
    return _VLLM if backend == "vllm" else "evaluate"


@functools.cache
def _digest(root: Path, definition: str) -> str:
    files = (*_LOCKS, f"containers/{definition}.def")
    return hashlib.sha256(b"".join((root / file).read_bytes() for file in files)).hexdigest()[:12]
