"""Where a merge is written: the folder, and the form of what is put there."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from mergetime.artifacts.companions import tokenizer_differs, tokenizer_files, written_beside
from mergetime.artifacts.files import DTYPES
from mergetime.artifacts.forms import FORMS, FormName, files_in
from mergetime.core.errors import UserError
from mergetime.core.words import nearest
from mergetime.merging import outputs
from mergetime.merging.work import Work


@dataclass(frozen=True)
class Target:
    """Where a merge is written, and how; ``tokenizer`` is a folder whose tokenizer takes the place of the base's."""

    folder: Path
    form: FormName
    dtype: str
    rank: int | None
    tokenizer: Path | None = None


def target_of(
    work: Work, folder: Path, output: FormName | None, dtype: str, rank: int | None, tokenizer_from: str | None = None
) -> Target:
    """Where the merge is written, and how.

    Raises:
        UserError: where the output asked for is impossible, or not exact without a rank.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype} is not one of {', '.join(DTYPES)}")
    in_adapter_space = work.space == "adapter"
    dense = work.pool.dense
    exact = bool(work.pool.adapters) and not dense and (in_adapter_space or work.method.keeps_low_rank(work.params))
    form: FormName = output or ("adapter" if exact else "delta")
    if form not in FORMS:
        raise UserError(f"output: {form!r} is not one of {', '.join(FORMS)}")
    if form == "adapter" and not work.pool.adapters:
        raise UserError("full checkpoints do not merge into an adapter; use --output delta or checkpoint")
    for name, adapter in dense.items() if form == "adapter" else ():
        factored = any(name.removesuffix(".weight") in member.pairs for member in work.pool.adapters)
        if not factored or rank is None:
            mend = ", or --rank for the best adapter of that rank" if factored else ""
            raise UserError(
                f"{adapter}: {adapter.dense[name]}, which a merged adapter does not hold; use --output delta or "
                f"checkpoint{mend}"
            )
    if form == "adapter" and not exact and rank is None:
        raise UserError(f"{work.method.id}: its result is dense; give --rank for the best adapter of that rank")
    if form != "adapter" and rank is not None:
        raise UserError(f"--rank is of an adapter; the output is a {form}")
    if form == "adapter" and dtype != "float32":
        raise UserError(f"an adapter is written in float32, not in {dtype}; drop --dtype or write another output")
    if in_adapter_space and (form != "adapter" or rank is not None):
        raise UserError("adapter space writes an adapter of the experts' rank; other outputs are for delta space")
    if form == "delta" and (untied := work.pool.untied):
        raise UserError(
            f"{untied}: moves {untied.apart} apart from what the base ties it to, which a task vector for that base "
            "cannot; use --output checkpoint, which gets a head of its own, or adapter"
        )
    if form != "checkpoint" and work.pool.extra_rows == "keep":
        raise UserError(
            f"--extra-rows keep: appends rows to a checkpoint, and the output is a {form}; use --output checkpoint, or "
            "--extra-rows drop"
        )
    if form == "checkpoint" and work.pool.base is None:
        raise UserError("a checkpoint needs the base's weights; give --base a folder")
    return Target(folder, form, dtype, rank, _tokenizer(work, form, tokenizer_from))


def _tokenizer(work: Work, form: FormName, expert: str | None) -> Path | None:
    """The folder of the expert whose tokenizer is asked for."""
    if expert is None:
        return None
    if form != "checkpoint":
        raise UserError(f"--tokenizer-from is of a checkpoint; the output is a {form}")
    folders = {member.name: member.folder for member in work.pool.members}
    if expert not in folders:
        raise UserError(f"--tokenizer-from: {expert!r} is no expert of this merge{nearest(expert, folders)}")
    if not tokenizer_files(folders[expert]):
        raise UserError(f"--tokenizer-from: the folder of expert {expert} holds no tokenizer; leave the option out")
    return folders[expert]


def check_copies(work: Work, target: Target) -> None:
    """Refuse a checkpoint with files beside its weights that cannot be copied there.

    Raises:
        UserError, OSError: naming the file.
    """
    if target.form == "checkpoint" and work.pool.base is not None:
        written_beside(work.pool.base.folder, target.tokenizer)


def tokenizers_that_differ(work: Work, target: Target) -> dict[str, str]:
    """Expert to what of its tokenizer a checkpoint's, the base's or another expert's, is not like.

    Raises:
        UserError: naming a file of a tokenizer that cannot be read.
    """
    if target.form != "checkpoint" or work.pool.base is None:
        return {}
    written = target.tokenizer or work.pool.base.folder
    parts = {member.name: tokenizer_differs(member.folder, written) for member in work.pool.members}
    return {name: part for name, part in parts.items() if part}


def opened(work: Work, target: Target) -> AbstractContextManager[outputs.Write]:
    """The target's files for a merge in delta space, to be written tensor by tensor."""
    pool = work.pool
    if target.form == "adapter":
        exact = work.method.keeps_low_rank(work.params)
        return outputs.adapter(pool, target.folder, target.rank, exact=exact)
    if target.form == "delta":
        return outputs.delta(pool, target.folder, target.dtype)
    assert pool.base is not None
    return outputs.checkpoint(pool, pool.base, target.folder, target.dtype, target.tokenizer)


def check_folder(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse the folder of an input."""
    if os.path.realpath(out) in [os.path.realpath(folder) for folder in inputs]:
        raise UserError(f"{out}: is the folder of an input; give --out another folder")


def remove_others(target: Target) -> None:
    """Remove an older merge's files of another form: a folder holds one result."""
    for form in FORMS.values():
        if form.name != target.form:
            # The config first: what a kill leaves is then no model.
            for file in reversed(files_in(target.folder, form)):
                file.unlink()
