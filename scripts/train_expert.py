"""Train one expert and keep it at every listed duration, with its loss curve and T*."""

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mergetime.core import provenance
from mergetime.core.errors import UserError, main
from mergetime.modalities import DEFAULT, names
from mergetime.training.durations import Durations, EarlyStopping, Multiples, Rule, Steps
from mergetime.training.schedule import Schedule
from mergetime.training.signals import STOPPED, Stop, Stopped

if TYPE_CHECKING:
    from mergetime.training.expert import Learner
    from mergetime.training.trainer import Plan


def run() -> None:
    options = _parse()
    stop = Stop()
    stop.listen()
    started = time.time()
    schedule, durations = _course(options)
    config = {name: getattr(options, name) for name in _CONFIG}
    config["early_stopping"] = {name: asdict(rule) for name, rule in options.early_stopping or []} or None
    inputs = {split: getattr(options, split) for split in ("train", "validation")}
    base = provenance.read(options.base / "fetched.json")["facts"]["weights_sha256"]
    _clean_if_different(
        options.checkpoints,
        {"config": config, "base": base, "code": provenance.code_digest("train_expert")}
        | {name: provenance.sha256(file) for name, file in inputs.items()},
    )
    # This import takes seconds, so it comes after the cheap checks.
    from mergetime.training.expert import train_expert

    learner, plan = _learner(options), _plan(options, schedule, durations)
    try:
        facts = train_expert(learner, options.train, options.validation, plan, options.checkpoints, options.out, stop)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(STOPPED) from stopped
    provenance.record(
        options.out / "expert.json",
        stage="train_expert",
        inputs=inputs | {"base": str(base)},
        config=config,
        facts=facts | {"base_sha256": base},
        started=started,
        outputs=[options.out / "curve.parquet"],
    )
    shutil.rmtree(options.checkpoints)


def _course(options: argparse.Namespace) -> tuple[Schedule, Durations]:
    """The rates of the run, and which of its steps are kept."""
    schedule = Schedule(
        kind=options.schedule,
        peak=options.learning_rate,
        warmup=options.warmup_steps,
        total=options.max_steps,
        monitor=options.monitor,
        factor=options.plateau_factor,
        patience=options.plateau_patience,
    )
    if options.multiples:
        return schedule, Multiples(tuple(options.multiples), options.save_every, options.max_steps)
    if options.steps:
        return schedule, Steps(tuple(options.steps), options.save_every)
    rules = dict(options.early_stopping)
    blind = [name for name, rule in rules.items() if rule.every > options.max_steps]
    if blind:
        raise UserError(f"early_stopping {blind[0]}: every is beyond max_steps {options.max_steps}; lower it")
    return schedule, EarlyStopping(rules, schedule, options.max_steps)


def _learner(options: argparse.Namespace) -> "Learner":
    import torch

    from mergetime.training.expert import Learner

    return Learner(
        folder=options.base,
        base_id=options.base_id,
        mode=options.mode,
        dtype=getattr(torch, options.dtype),
        rank=options.rank,
        alpha=options.alpha or options.rank,
        seed=options.seed,
        modality=options.modality,
    )


def _plan(options: argparse.Namespace, schedule: Schedule, durations: Durations) -> "Plan":
    from mergetime.training.trainer import Plan

    return Plan(
        schedule=schedule,
        durations=durations,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        gradient_checkpointing=options.gradient_checkpointing,
        group_by_length=options.group_by_length,
        seed=options.seed,
        bfloat16=options.dtype == "bfloat16",
    )


_CONFIG = [
    "modality", "mode", "dtype", "rank", "alpha", "learning_rate", "schedule", "plateau_factor", "plateau_patience",
    "monitor", "warmup_steps", "batch_size", "micro_batch_size", "gradient_checkpointing", "group_by_length",
    "save_every", "max_steps", "multiples", "steps", "seed", "base_id",
]  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="SIGURG, SIGTERM and SIGINT write a checkpoint at the end of the step and exit with status 75; the same "
        "command then goes on from there.",
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--base", type=Path, required=True, help="folder of the base, as fetched")
    parser.add_argument("--base-id", required=True, help="hub id of the base, for adapter_config.json")
    parser.add_argument("--modality", choices=names(), default=DEFAULT, help=f"of the base; default {DEFAULT}")
    parser.add_argument("--train", type=Path, required=True, help="Parquet of examples, as prepared")
    parser.add_argument("--validation", type=Path, required=True, help="Parquet of examples, as prepared")
    parser.add_argument(
        "--mode", choices=["qlora", "lora", "full"], required=True, help="LoRA on NF4, LoRA, or all weights"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True, help="dtype of the base")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank")
    parser.add_argument("--alpha", type=float, help="LoRA alpha; the rank unless given")
    parser.add_argument("--learning-rate", type=float, required=True, help="after the warm-up")
    parser.add_argument("--schedule", choices=["constant", "cosine", "linear", "plateau"], default="constant")
    parser.add_argument("--plateau-factor", type=float, default=0.5, help="plateau: the rate is multiplied by this")
    parser.add_argument(
        "--plateau-patience", type=int, default=3, help="plateau: after so many validations without improvement"
    )
    parser.add_argument(
        "--monitor", choices=["loss", "accuracy"], default="loss", help="what plateau and early stopping watch"
    )
    parser.add_argument("--warmup-steps", type=int, required=True, help="linear warm-up, in optimizer steps")
    parser.add_argument("--batch-size", type=int, required=True, help="effective batch, in examples")
    parser.add_argument("--micro-batch-size", type=int, help="examples a forward pass; unless given, as many as fit")
    parser.add_argument(
        "--gradient-checkpointing", action=switch, help="unless given, where one example would not fit otherwise"
    )
    parser.add_argument("--group-by-length", action=switch, default=True, help="batches of similar lengths")
    parser.add_argument("--save-every", type=int, required=True, help="E; validation loss every 4 E steps")
    parser.add_argument("--max-steps", type=int, required=True, help="training ends here at the latest")
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--multiples", type=float, nargs="+", help="durations as multiples of T*")
    kept.add_argument("--steps", type=int, nargs="+", help="durations in optimizer steps")
    kept.add_argument(
        "--early-stopping",
        type=_rule,
        nargs="+",
        metavar="NAME:every=N,patience=N",
        help="rules that end training; rate_below=RATE instead of patience; kept is the best that a rule saw",
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of checkpoints, removed at the end")
    parser.add_argument("--out", type=Path, required=True, help="folder of {duration}/, curve.parquet, expert.json")
    return parser.parse_args()


def _rule(text: str) -> tuple[str, Rule]:
    """A rule from ``NAME:every=N,patience=N`` or ``NAME:every=N,rate_below=RATE``."""
    name, _, given = text.partition(":")
    kinds = {"every": int, "patience": int, "rate_below": float}
    try:
        values = {key: kinds[key](value) for key, value in (part.split("=") for part in given.split(","))}
        return name, Rule(**values)
    except (KeyError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} is no NAME:every=N,patience=N or NAME:every=N,rate_below=R"
        ) from error


def _clean_if_different(checkpoints: Path, identity: dict[str, object]) -> None:
    """Empty ``checkpoints`` unless its checkpoints come from the same data, base, settings and code."""
    file = checkpoints / "run.json"
    text = json.dumps(identity, sort_keys=True, default=str)
    if checkpoints.exists() and (not file.exists() or file.read_text() != text):
        shutil.rmtree(checkpoints)
    provenance.write_atomically(file, text)


if __name__ == "__main__":
    main(run)
