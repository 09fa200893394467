"""Prepare a domain: train and validation examples as chat messages, filtered, deduplicated, decontaminated."""

import argparse
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mergetime.core import provenance
from mergetime.core.digests import code_digest
from mergetime.core.errors import UserError, main
from mergetime.data import registry
from mergetime.data.messages import Messages
from mergetime.data.preparation import benchmark_ngrams, prepare, scored_files
from mergetime.modalities import DEFAULT, names, reading

_SCHEMA = pa.schema(
    [
        pa.field("messages", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))),
        pa.field("tokens", pa.int64()),
    ]
)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set, as fetched")
    parser.add_argument("--split", required=True, help="its split that examples are drawn from")
    parser.add_argument("--format", required=True, choices=registry.names(), help="how its columns become messages")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the base whose tokenizer counts")
    parser.add_argument("--modality", choices=names(), default=DEFAULT, help=f"of the base; default {DEFAULT}")
    parser.add_argument("--benchmark", type=Path, action="append", default=[], help="folder of a benchmark's data")
    parser.add_argument("--train", type=int, required=True)
    parser.add_argument("--validation", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of train.parquet, validation.parquet, domain.json"
    )
    options = parser.parse_args()
    started = time.time()

    rows = options.dataset / f"{options.split}.parquet"
    if not rows.exists():
        splits = ", ".join(sorted(file.stem for file in options.dataset.glob("*.parquet")))
        raise UserError(f"{options.dataset}: it has no split '{options.split}'; it has: {splits}")
    part = reading.get(options.modality)
    reader = part.reader(options.tokenizer)

    def count_tokens(messages: Messages) -> int:
        return int(part.encode(reader, {"messages": messages}).length)

    files = [file for folder in options.benchmark for file in scored_files(folder)]
    prepared = prepare(
        pq.read_table(rows).to_pylist(),
        name=options.format,
        source=str(rows),
        train=options.train,
        validation=options.validation,
        seed=options.seed,
        max_tokens=options.max_tokens,
        count_tokens=count_tokens,
        contaminating=benchmark_ngrams(row for file in files for row in pq.read_table(file).to_pylist()),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    outputs = {"train": prepared.train, "validation": prepared.validation}
    tokens = {}
    for split, examples in outputs.items():
        table = [{"messages": messages, "tokens": count_tokens(messages)} for messages in examples]
        tokens[split] = sum(row["tokens"] for row in table)
        beside = options.out / f".{split}.part"
        pq.write_table(pa.Table.from_pylist(table, schema=_SCHEMA), beside, compression="zstd")
        beside.replace(options.out / f"{split}.parquet")
    provenance.record(
        options.out / "domain.json",
        stage="prepare_domain",
        inputs={"rows": rows, **{file.parent.name + "/" + file.name: file for file in files}},
        config={
            name: getattr(options, name) for name in ("modality", "format", "train", "validation", "max_tokens", "seed")
        },
        facts={
            "examples": {split: len(examples) for split, examples in outputs.items()},
            "tokens": tokens,
            "dropped": dict(sorted(prepared.dropped.items())),
        },
        started=started,
        outputs=[options.out / f"{split}.parquet" for split in outputs],
        code=code_digest("prepare_domain", members=(registry.file_of(options.format),)),
    )


if __name__ == "__main__":
    main(run)
