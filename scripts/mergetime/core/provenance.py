"""The JSON beside every artifact, digests of files and code.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2]
_PACKAGES = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "lm_eval", "pandas", "pyarrow", "safetensors"]


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files below a folder, as hexadecimal digits."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(folder: Path) -> str:
    """The digest that stands for a model: of its safetensors file, or of the digests of its shards in order."""
    weights = sorted(folder.glob("*.safetensors"))
    if len(weights) == 1:
        return sha256(weights[0])
    return hashlib.sha256("".join(sha256(file) for file in weights).encode()).hexdigest()


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write ``data`` beside ``path``, then rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(data.encode() if isinstance(data, str) else data)
    beside.replace(path)


@functools.cache
def code_digest(*stems: str) -> str:
    """SHA-256 over the scripts of these stems and every module of the package that they import, 16 digits.

    Passed to rules as a param: a change of code reruns exactly the stages that use it, and undoing the change
    cancels that.
    """
    return _digest(_with_imports([SCRIPTS / f"{stem}.py" for stem in stems]))


@functools.cache
def tasks_digest(folder: Path) -> str:
    """The same over a folder of lm-eval tasks: its YAML and Python files, and the modules which these import."""
    files = [file for file in folder.resolve().rglob("*") if file.suffix in (".py", ".yaml")]
    return _digest(_with_imports(files))


def _digest(files: Iterable[Path]) -> str:
    lines = sorted(f"{os.path.relpath(file, SCRIPTS)} {sha256(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _with_imports(files: Iterable[Path]) -> set[Path]:
    pending, seen = list(files), set[Path]()
    while pending:
        file = pending.pop()
        if file not in seen:
            seen.add(file)
            pending += _imports(file) if file.suffix == ".py" else ()
    return seen


@functools.cache
def _imports(file: Path) -> tuple[Path, ...]:
    """The package's files that ``file`` imports; a package imported by its own name stands for all its modules."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules, targets = [], [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules, targets = [node.module], [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in [*modules, *targets]:
            path = SCRIPTS.joinpath(*name.split("."))
            if name.split(".")[0] != "mergetime":
                continue
            found.update(module for module in (path.with_suffix(".py"), path / "__init__.py") if module.is_file())
            if name in targets and path.is_dir():
                found.update(path.glob("*.py"))
    if file.parent == SCRIPTS / "mergetime/modalities" and file.name != "__init__.py":
        # A part of a modality is loaded by name: its protocol stands for that part of all modalities.
        found.update(file.parent.glob(f"*/{file.name}"))
    return tuple(sorted(found))


def record(
    path: Path,
    *,
    stage: str,
    inputs: Mapping[str, Path] | Mapping[str, str],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    started: float,
    outputs: Iterable[Path] = (),
) -> None:
    """Write the JSON ``path``: where an artifact came from and what it took.

    Args:
        path: the JSON file.
        stage: the rule and script that made the artifact.
        inputs: name to file or folder (hashed here), or to a digest that is known already.
        config: the slice of the study that determined the artifact, seeds included.
        facts: what the stage has to say about the artifact.
        started: ``time.time()`` at the start.
        outputs: the artifact's files, hashed here so that damage can be found later.
    """
    content = {
        "stage": stage,
        "facts": dict(facts),
        "config": dict(config),
        "inputs": {
            name: i if isinstance(i, str) else {"path": str(i), "sha256": sha256(i)} for name, i in inputs.items()
        },
        "outputs": {file.name: sha256(file) for file in outputs},
        "code": code_digest(stage),
        "versions": versions(),
        "machine": machine(),
        "wall_s": round(time.time() - started, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of Python, of mergetime's main packages that are installed, and of mergetime."""
    from mergetime import __version__

    found = {"python": platform.python_version(), "mergetime": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """The processor kind; the image, in a container; the GPU with its peak memory in MB, if torch runs on one."""
    found = {"processor": platform.machine(), "system": platform.system()}
    if "APPTAINER_CONTAINER" in os.environ:
        found["container"] = Path(os.environ["APPTAINER_CONTAINER"]).name
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_peak_memory_mb"] = str(round(torch.cuda.max_memory_allocated() / 2**20))
    return found


def read(path: Path) -> dict[str, Any]:
    """A JSON written by :func:`record`."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
