"""Measure how experts interfere in weight space: sign conflicts, overlap, magnitudes, variance and cosines."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from mergetime import provenance, results
from mergetime.errors import UserError, main
from mergetime.merging.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_json
from mergetime.merging.interference import COLUMNS, KEEP, TENSORS, Interference, measure
from mergetime.merging.pool import is_checkpoint, open_pool


def pair(text: str) -> tuple[str, Path]:
    """``name=path`` in two."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=path")
    return name, Path(path)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = made.add_argument
    add(
        "--expert",
        type=pair,
        action="append",
        required=True,
        metavar="NAME=PATH",
        help="folder of an adapter or of a full checkpoint; repeat",
    )
    add("--base", type=Path, metavar="DIR", help="folder of the base, which full checkpoints need")
    add("--keep", type=float, default=KEEP.default, help=f"{KEEP.meaning}; default {KEEP.default}")
    add(
        "--threads",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        help="tensors measured at a time, default all processors; the result is the same",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.parquet",
        help="one row a metric; FILE.tensors.parquet (cosines tensor by tensor) and FILE.json come beside it",
    )
    return made


def digest_of(base: Path) -> str:
    """The digest of the base's weights: as ``fetched.json`` has it, or of the folder's files."""
    if (base / "fetched.json").is_file():
        digest = read_json(base / "fetched.json", f"base {base}").get("facts", {}).get("weights_sha256")
        if digest:
            return str(digest)
    return provenance.weights_sha256(base)


def inputs_of(experts: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """The files and folders that determine the result, by name."""
    files = {}
    for name, folder in experts:
        if is_checkpoint(folder):
            files[f"expert {name}"] = folder
        else:
            files |= {f"expert {name}": folder / ADAPTER_WEIGHTS, f"config of {name}": folder / ADAPTER_CONFIG}
    return files


def write(found: Interference, out: Path) -> list[Path]:
    """Write both tables, whole or not at all."""
    tables = {
        out: (found.metrics, COLUMNS),
        out.with_name(f"{out.stem}.tensors.parquet"): (found.tensors, TENSORS),
    }
    for path, (frame, columns) in tables.items():
        beside = path.with_name(f".{path.name}.part")
        results.write(frame, columns, beside)
        beside.replace(path)
    return list(tables)


def report(found: Interference) -> str:
    """What a person wants to know: means over the pairs, as the paper's tables have them."""
    model = found.metrics[found.metrics["scope"] == "model"]
    means = model.groupby("metric")["value"].mean()
    pairs = int((model["metric"] == "cosine").sum())
    return (
        f"{pairs} pairs, {int(means['entries']):,} entries; variance {means['variance']:.3g}; means over the pairs: "
        f"sign conflict {means['sign_conflict']:.2%}, overlap {means['overlap']:.2%}, "
        f"magnitude ratio {means['magnitude_ratio']:.3g}, cosine {means['cosine']:.3g}"
    )


def run(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says."""
    started = time.time()
    given = parser().parse_args(arguments)
    if given.out.suffix != ".parquet":
        raise UserError(f"--out {given.out}: name a file that ends in .parquet")
    base_sha256 = digest_of(given.base) if given.base else None
    with open_pool(given.expert, base=given.base, base_sha256=base_sha256) as pool:
        found = measure(pool, keep=given.keep, threads=given.threads)
    provenance.record(
        given.out.with_suffix(".json"),
        stage="measure_interference",
        inputs=inputs_of(given.expert),
        config={
            "experts": sorted(name for name, _ in given.expert),
            "keep": given.keep,
            "base_sha256": base_sha256,
        },
        facts={"rows": {"metrics": len(found.metrics), "tensors": len(found.tensors)}},
        started=started,
        outputs=write(found, given.out),
    )
    print(report(found))


if __name__ == "__main__":
    main(run)
