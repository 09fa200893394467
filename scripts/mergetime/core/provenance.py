"""The JSON beside every artifact, and digests of files.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mergetime.core.atomic import write_atomically
from mergetime.core.digests import code_digest

_PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "lm_eval", "pandas", "pyarrow", "safetensors"]


Digest = Callable[[Path], str]
"""SHA-256 of a file or folder."""


def sha256(path: Path, of_file: Digest | None = None) -> str:
    """SHA-256 of a file, or of the names and digests of all files below a folder, as hexadecimal digits.

    ``of_file`` says what is known of a file already.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{sha256(file, of_file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    if of_file:
        return of_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record(
    path: Path,
    *,
    stage: str,
    inputs: Mapping[str, Path] | Mapping[str, str],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    started: float,
    outputs: Iterable[Path] = (),
    code: str | None = None,
    digest: Digest = sha256,
) -> None:
    """Write the JSON ``path``: where an artifact came from and what it took.

    Args:
        path: the JSON file.
        stage: the rule and script that made the artifact.
        inputs: name to file or folder (hashed here), or to a digest that is known already.
        config: the slice of the study that determined the artifact, seeds included.
        facts: what the stage has to say about the artifact.
        started: ``time.time()`` at the start.
        outputs: the artifact's files, beside the record or below, hashed here so that damage can be found later.
        code: digest of the code that ran; None: of the script ``stage``, which loads nothing by name.
        digest: what hashes inputs and outputs.
    """
    content = {
        "stage": stage,
        "facts": dict(facts),
        "config": dict(config),
        "inputs": {
            name: i if isinstance(i, str) else {"path": str(i), "sha256": digest(i)} for name, i in inputs.items()
        },
        "outputs": {_name(file, path.parent): digest(file) for file in outputs},
        "code": code or code_digest(stage),
        "versions": versions(),
        "machine": machine(),
        "wall_s": round(time.time() - started, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _name(file: Path, folder: Path) -> str:
    """A file's name, with the folders between it and the record's folder where there are some."""
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def versions() -> dict[str, str]:
    """Versions of Python, of mergetime's main packages that are installed, and of mergetime."""
    from mergetime import __version__

    installed = {"python": platform.python_version(), "mergetime": __version__}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def machine() -> dict[str, str]:
    """The processor kind; the image, in a container; the GPU with its peak memory in MB, if torch runs on one."""
    facts = {"processor": platform.machine(), "system": platform.system()}
    if "APPTAINER_CONTAINER" in os.environ:
        facts["container"] = Path(os.environ["APPTAINER_CONTAINER"]).name
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_peak_memory_mb"] = str(round(torch.cuda.max_memory_allocated() / 2**20))
    return facts


def read(path: Path) -> dict[str, Any]:
    """A JSON written by :func:`record`."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
