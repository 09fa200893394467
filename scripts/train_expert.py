"""Train one expert and keep its adapter at every listed duration, with its loss curve and T*."""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime import provenance
from mergetime.errors import main

if TYPE_CHECKING:
    from mergetime.training.run import Plan, Progress


def run() -> None:
    options = _parse()
    started = time.time()
    config = {name: getattr(options, name) for name in _CONFIG}
    inputs = {split: getattr(options, split) for split in ("train", "validation")}
    base = provenance.read(options.base / "fetched.json")["facts"]["weights_sha256"]
    _clean_if_different(
        options.checkpoints,
        {"config": config, "base": base, "code": provenance.code_digest("train_expert")}
        | {name: provenance.sha256(file) for name, file in inputs.items()},
    )
    facts = _train(options) | {"base_sha256": base}
    provenance.record(
        options.out / "expert.json",
        stage="train_expert",
        inputs=inputs | {"base": str(base)},
        config=config,
        facts=facts,
        started=started,
        outputs=[options.out / "curve.parquet"],
    )
    shutil.rmtree(options.checkpoints)


def _train(options: argparse.Namespace) -> dict[str, Any]:
    """Train, put adapters and curve into place, and return what there is to say of the expert."""
    # These imports take seconds, so they come after the cheap checks.
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoTokenizer

    from mergetime.data.encoding import encode
    from mergetime.training.model import add_lora, load_base, projections
    from mergetime.training.run import train

    tokenizer = AutoTokenizer.from_pretrained(options.base, trust_remote_code=False)
    train_set, validation_set = (
        [encode(tokenizer, row["messages"]) for row in pq.read_table(file).to_pylist()]
        for file in (options.train, options.validation)
    )
    loaded = load_base(options.base, dtype=getattr(torch, options.dtype), four_bit=options.mode == "qlora")
    targets = projections(loaded)
    model = add_lora(loaded, rank=options.rank, alpha=options.alpha, seed=options.seed)
    progress = train(model, train_set, validation_set, _plan(options), options.checkpoints, options.base_id)
    trainable, total = model.get_nb_trainable_parameters()
    sizes = {"target_modules": targets, "trainable_parameters": trainable, "parameters": total}
    return sizes | _keep(options, progress)


def _plan(options: argparse.Namespace) -> "Plan":
    from mergetime.training.run import Plan

    return Plan(
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size or options.batch_size,
        save_every=options.save_every,
        max_steps=options.max_steps if options.multiples else max(options.steps),
        longest=max(1.0, *options.multiples) if options.multiples else None,
        seed=options.seed,
        bfloat16=options.dtype == "bfloat16",
    )


def _keep(options: argparse.Namespace, progress: "Progress") -> dict[str, Any]:
    """Find T*, copy the adapters of the listed durations and write the curve; what was found, for the record."""
    import pandas as pd

    from mergetime.training.optimum import find_optimum, steps_of
    from mergetime.training.run import adapter_folder

    plan = _plan(options)
    optimum = find_optimum(progress.curve, longest=plan.longest or 1.0, max_steps=plan.max_steps)
    if options.multiples:
        steps = steps_of(options.multiples, optimum.step)
    else:
        steps = {f"step_{step}": step for step in options.steps}
    adapters = {}
    for duration, step in steps.items():
        shutil.copytree(adapter_folder(options.checkpoints, step), options.out / duration, dirs_exist_ok=True)
        adapters[duration] = provenance.sha256(options.out / duration / "adapter_model.safetensors")
    beside = options.out / ".curve.part"
    pd.DataFrame(progress.rows).to_parquet(beside)
    beside.replace(options.out / "curve.parquet")
    return {
        "t_star": optimum.step,
        "t_star_loss": optimum.loss,
        "t_star_boundary": optimum.boundary,
        "lowest_step": optimum.lowest_step,
        "last_step": progress.last_step,
        "steps": steps,
        "adapters_sha256": adapters,
    }


_CONFIG = [
    "mode", "dtype", "rank", "alpha", "learning_rate", "warmup_steps", "batch_size", "micro_batch_size",
    "save_every", "max_steps", "multiples", "steps", "seed", "base_id",
]  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the base, as fetched")
    parser.add_argument("--base-id", required=True, help="hub id of the base, for adapter_config.json")
    parser.add_argument("--train", type=Path, required=True, help="Parquet with a column messages")
    parser.add_argument("--validation", type=Path, required=True, help="Parquet with a column messages")
    parser.add_argument("--mode", choices=["qlora", "lora"], required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--alpha", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--warmup-steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--save-every", type=int, required=True, help="E; validation loss every 4 E steps")
    parser.add_argument("--max-steps", type=int, required=True)
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--multiples", type=float, nargs="+", help="durations as multiples of T*")
    kept.add_argument("--steps", type=int, nargs="+", help="durations in optimizer steps")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of checkpoints, removed at the end")
    parser.add_argument("--out", type=Path, required=True, help="folder of {duration}/, curve.parquet, expert.json")
    return parser.parse_args()


def _clean_if_different(checkpoints: Path, identity: dict[str, object]) -> None:
    """Empty ``checkpoints`` unless its checkpoints come from the same data, base, settings and code."""
    file = checkpoints / "run.json"
    text = json.dumps(identity, sort_keys=True, default=str)
    if checkpoints.exists() and (not file.exists() or file.read_text() != text):
        shutil.rmtree(checkpoints)
    provenance.write_atomically(file, text)


if __name__ == "__main__":
    main(run)
