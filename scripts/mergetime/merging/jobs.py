"""One merge as rules and people ask for it: what the engine is told of it, the record beside its result, a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict

from mergetime.artifacts.forms import FormName, weight_files
from mergetime.artifacts.vocabulary import ExtraRows
from mergetime.core import provenance, yaml_text
from mergetime.core.digests import code_digest
from mergetime.core.errors import UserError
from mergetime.core.hashing import Digests
from mergetime.core.words import nearest
from mergetime.merging import claiming, options, registry
from mergetime.merging.options import Experts
from mergetime.merging.preview import notes
from mergetime.merging.vocabularies import in_words
from mergetime.merging.work import ByTensor


class MergeJob(BaseModel):
    """A merge of a pool: the method with its hyper-parameters, and where and how the result is written.

    Attributes:
        out: folder for the merged weights and merged.json.
        method: id of the merge method.
        space: where to merge.
        form: what to write; None: an adapter where that is exact, else the task vector.
        preset: named hyper-parameters that reproduce another implementation.
        parameters: hyper-parameters; what validation chose goes before them.
        statistics: expert to the file of what was measured of it, for methods that need data.
        selection: the JSON of what validation chose: facts: {chosen: {parameter: value}, members: [name]}.
        dtype: of a task vector or a checkpoint.
        rank: largest rank of an adapter.
        extra_rows: what is done with rows of experts' vocabularies that the base has not.
        mergekit: mergekit's YAML that the job was made of, for the record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    method: str
    space: Literal["adapter", "delta"] = "delta"
    form: FormName | None = None
    preset: str | None = None
    parameters: dict[str, Any] = {}
    statistics: dict[str, Path] = {}
    selection: Path | None = None
    dtype: str = "float32"
    rank: int | None = None
    extra_rows: ExtraRows = "refuse"
    mergekit: Path | None = None


class MergeArguments(TypedDict):
    """What :func:`mergetime.merging.engine.merge` is told of a job."""

    experts: Experts
    method: str
    params: dict[str, Any]
    space: str
    seed: int | None
    out: Path
    output: FormName | None
    dtype: str
    rank: int | None
    extra_rows: ExtraRows
    base: Path | None
    base_sha256: str | None
    statistics: dict[str, Path] | None
    by_tensor: ByTensor | None


def arguments_of(
    job: MergeJob, experts: Experts, *, base: Path | None, base_sha256: str | None = None, seed: int | None
) -> MergeArguments:
    """What the engine is told of a job: parameters with what validation chose, the members of the pool, the base.

    Args:
        job: the merge.
        experts: names and folders of the pool's members; a selection may take some of them alone.
        base: the base's folder, which full checkpoints need, or its fetched.json.
        base_sha256: the base's digest, where there is no ``base``; experts trained on another are refused.
        seed: a stochastic method needs one.

    Raises:
        UserError, ValueError: in one line that names the expert or parameter.
    """
    method = registry.get(job.method)
    selection = provenance.read(job.selection)["facts"] if job.selection else {}
    params = method.validate({**job.parameters, **selection.get("chosen", {})}, job.preset)
    if method.needs_members and "members" not in selection:
        raise UserError(f"{method.id}: needs a --selection that names its members")
    members = _restricted(experts, selection.get("members"), job.selection)
    return MergeArguments(
        experts=members,
        method=method.id,
        params=params,
        space=job.space,
        seed=seed,
        out=job.out,
        output=job.form,
        dtype=job.dtype,
        rank=job.rank,
        extra_rows=job.extra_rows,
        base=base if base and base.is_dir() else None,
        base_sha256=options.base_sha256(base, members) if base else base_sha256,
        statistics=job.statistics or None,
        by_tensor=None,
    )


def record(
    job: MergeJob,
    told: MergeArguments,
    summary: dict[str, Any],
    started: float,
    digests: Digests,
    outputs: Sequence[Path] | None = None,
) -> dict[str, Any]:
    """Write merged.json beside the result: what the merge was made of, and what it was told.

    Args:
        job: the merge.
        told: what the engine was told of it.
        summary: what the engine says of it.
        started: when it began, in seconds since 1970.
        digests: those of the experts' weights, if they were begun with.
        outputs: the files of the merge; None: those of its weights.

    Returns:
        The summary, with ``peak_memory_mb``.
    """
    file = job.out / claiming.RECORD
    outputs = weight_files(job.out) if outputs is None else outputs
    digests.begin(outputs)
    provenance.record(
        file,
        stage=claiming.STAGE,
        inputs=_inputs_of(job, told["experts"], summary["architecture"]),
        config={
            "method": told["method"],
            "preset": job.preset,
            "space": job.space,
            "params": told["params"] if told["by_tensor"] is None else None,
            **({"mergekit": yaml_text.read(job.mergekit)} if job.mergekit else {}),
            "seed": told["seed"],
            "members": sorted(name for name, _ in told["experts"]),
            "base_sha256": told["base_sha256"],
            "output": summary["output"],
            "dtype": job.dtype,
            "rank": job.rank,
            "extra_rows": job.extra_rows,
        },
        facts=summary,
        started=started,
        outputs=outputs,
        code=code_digest("merge_pool", members=(registry.file_of(told["method"]),)),
        digest=digests.of,
    )
    return summary | {"peak_memory_mb": provenance.read(file)["peak_memory_mb"]}


def _restricted(experts: Experts, members: Sequence[str] | None, selection: Path | None) -> list[tuple[str, Path]]:
    """The experts that the selection names as members, or all where it names none."""
    if members is None:
        return list(experts)
    names = [name for name, _ in experts]
    for member in members:
        if member not in names:
            raise UserError(f"{selection}: member {member!r} is no expert of this merge{nearest(member, names)}")
    return [(name, folder) for name, folder in experts if name in members]


def _inputs_of(job: MergeJob, experts: Experts, architecture: str) -> dict[str, Path]:
    """The files and folders that determine the result, by name.

    The architecture's file is one of them, and no part of the job's code: `snakemake verify` names merges that were
    made with another version of it, and a file for a new architecture makes nothing again.
    """
    files = options.files_of(experts) | {f"statistics of {name}": path for name, path in job.statistics.items()}
    chosen = {"selection": job.selection} if job.selection else {}
    chosen |= {"mergekit's YAML": job.mergekit} if job.mergekit else {}
    return files | chosen | {"architecture": Path(architecture)}


def report(summary: dict[str, Any], method: str) -> str:
    """What a person wants to know of a merge."""
    norms = ", ".join(f"{name} {norm:.4g}" for name, norm in summary["expert_norms"].items())
    peak = summary["peak_memory_mb"]
    lines = [
        f"{method}: {summary['entries']:,} entries in {summary['seconds']} s, peak memory {peak} MB",
        f"norms: {norms}; merged {summary['merged_norm']:.4g}",
    ]
    if "sparsity" in summary:
        lines.append(f"zeros {summary['sparsity']:.1%}, entries with a sign conflict {summary['sign_conflicts']:.1%}")
    lines += in_words(summary["vocabulary"])
    lines += notes(summary["tokenizers"], summary["left_aside"])
    lines.append(f"written as {summary['output']}, relative error of that {summary['relative_error']:.2g}")
    return "\n".join(lines)
