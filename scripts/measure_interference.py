"""Measure how experts interfere in weight space: sign conflicts, overlap, magnitudes, variance and cosines."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mergetime.core import provenance, tables
from mergetime.core.errors import UserError, main
from mergetime.measuring.columns import INTERFERENCE, TENSORS
from mergetime.measuring.interference import KEEP, Interference, measure
from mergetime.merging import options
from mergetime.merging.opening import open_pool


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command_line = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = command_line.add_argument
    options.add_options(command_line)
    add("--base", type=Path, metavar="DIR", help="folder of the base, which full checkpoints need")
    add("--keep", type=float, default=KEEP.default, help=f"{KEEP.meaning}; default {KEEP.default}")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.parquet",
        help="one row per metric; FILE.tensors.parquet (cosines tensor by tensor) and FILE.json come beside it",
    )
    return command_line


def write(interference: Interference, out: Path) -> list[Path]:
    """Write both tables, whole or not at all."""
    frames = {
        out: (interference.metrics, INTERFERENCE),
        out.with_name(f"{out.stem}.tensors.parquet"): (interference.tensors, TENSORS),
    }
    tables.write_all(frames)
    return list(frames)


def report(interference: Interference) -> str:
    """What a person wants to know: means over the pairs."""
    model = interference.metrics[interference.metrics["scope"] == "model"]
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
    experts = options.experts_of(given)
    base_sha256 = options.base_sha256(given.base, experts) if given.base else None
    with open_pool(experts, base=given.base, base_sha256=base_sha256) as pool:
        interference = measure(pool, keep=given.keep, threads=given.threads)
    provenance.record(
        given.out.with_suffix(".json"),
        stage="measure_interference",
        inputs=options.files_of(experts),
        config={
            "experts": sorted(name for name, _ in experts),
            "keep": given.keep,
            "base_sha256": base_sha256,
        },
        facts={"rows": {"metrics": len(interference.metrics), "tensors": len(interference.tensors)}},
        started=started,
        outputs=write(interference, given.out),
    )
    print(report(interference))


if __name__ == "__main__":
    main(run)
