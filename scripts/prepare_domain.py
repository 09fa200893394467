"""Prepare a domain: train and validation examples as chat messages, filtered, deduplicated, decontaminated."""

import argparse
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mergetime.config.sections import parse_json
from mergetime.config.sources import Domain
from mergetime.core import provenance
from mergetime.core.atomic import completed
from mergetime.core.digests import code_digest
from mergetime.core.errors import UserError, main
from mergetime.data import registry
from mergetime.data.messages import Messages
from mergetime.data.preparation import benchmark_ngrams, prepare, scored_files
from mergetime.modalities import reading
from mergetime.modalities.parts import DEFAULT, names

_SCHEMA = pa.schema(
    [
        pa.field("messages", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))),
        pa.field("tokens", pa.int64()),
    ]
)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set, as fetched")
    parser.add_argument("--domain", metavar="JSON", required=True, help="one of the domains of a config, as JSON")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the base whose tokenizer counts")
    parser.add_argument("--modality", choices=names(), default=DEFAULT, help=f"of the base; default {DEFAULT}")
    parser.add_argument("--benchmarks", type=Path, nargs="*", default=[], help="folders of the benchmarks' data")
    parser.add_argument("--seed", type=int, required=True, help="draws the examples")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of train.parquet, validation.parquet, domain.json"
    )
    options = parser.parse_args()
    started = time.time()
    domain = parse_json(Domain, options.domain, "--domain")

    rows = options.dataset / f"{domain.split}.parquet"
    if not rows.exists():
        splits = ", ".join(sorted(file.stem for file in options.dataset.glob("*.parquet")))
        raise UserError(f"{options.dataset}: it has no split '{domain.split}'; it has: {splits}")
    modality = reading.get(options.modality)
    reader = modality.reader(options.tokenizer)

    def count_tokens(messages: Messages) -> int:
        return int(modality.encode(reader, {"messages": messages}).length)

    files = [file for folder in options.benchmarks for file in scored_files(folder)]
    prepared = prepare(
        pq.read_table(rows).to_pylist(),
        name=domain.format,
        source=str(rows),
        train=domain.train,
        validation=domain.validation,
        seed=options.seed,
        max_tokens=domain.max_tokens,
        count_tokens=count_tokens,
        contaminating=benchmark_ngrams(row for file in files for row in pq.read_table(file).to_pylist()),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    outputs = {"train": prepared.train, "validation": prepared.validation}
    tokens = {}
    for split, examples in outputs.items():
        table: list[dict[str, Any]] = [
            {"messages": messages, "tokens": count_tokens(messages)} for messages in examples
        ]
        tokens[split] = sum(row["tokens"] for row in table)
        with completed(options.out / f"{split}.parquet") as (beside,):
            pq.write_table(pa.Table.from_pylist(table, schema=_SCHEMA), beside, compression="zstd")
    provenance.record(
        options.out / "domain.json",
        stage="prepare_domain",
        inputs={"rows": rows, **{file.parent.name + "/" + file.name: file for file in files}},
        config=domain.model_dump(mode="json") | {"modality": options.modality, "seed": options.seed},
        facts={
            "examples": {split: len(examples) for split, examples in outputs.items()},
            "tokens": tokens,
            "dropped": dict(sorted(prepared.dropped.items())),
        },
        started=started,
        outputs=[options.out / f"{split}.parquet" for split in outputs],
        code=code_digest("prepare_domain", members=(registry.file_of(domain.format),)),
    )


if __name__ == "__main__":
    main(run)
