"""Train one expert and keep it at every listed duration, with its loss curve and T*."""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.config.experts import Recipe, Training
from mergetime.config.sections import parse_json
from mergetime.core import provenance
from mergetime.core.atomic import write_atomically
from mergetime.core.digests import code_digest
from mergetime.core.errors import main
from mergetime.modalities.parts import DEFAULT, names
from mergetime.training.durations import durations_of
from mergetime.training.schedule import schedule_of
from mergetime.training.signals import STOPPED, Stop, Stopped

if TYPE_CHECKING:
    from mergetime.training.expert import Learner
    from mergetime.training.trainer import Plan


def run() -> None:
    options = _parse()
    stop = Stop()
    stop.listen()
    started = time.time()
    recipe = parse_json(Recipe, options.recipe, "--recipe")
    inputs = {split: getattr(options, split) for split in ("train", "validation")}
    base = provenance.read(options.base / "fetched.json")["facts"]["weights_sha256"]
    given = {name: getattr(options, name) for name in ("base_id", "modality", "dtype", "seed")}
    _clean_if_different(
        options.checkpoints,
        # As they were given: a new option that is off lets a run go on that was stopped before there was one.
        {"recipe": json.loads(options.recipe)}
        | given
        | {"base": base, "code": code_digest("train_expert", modality=options.modality)}
        | {name: provenance.sha256(file) for name, file in inputs.items()},
    )
    # This import takes seconds, so it comes after the cheap checks.
    from mergetime.training.expert import train_expert

    learner, plan = _learner(options, recipe.train), _plan(options, recipe)
    try:
        facts = train_expert(learner, options.train, options.validation, plan, options.checkpoints, options.out, stop)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(STOPPED) from stopped
    provenance.record(
        options.out / "expert.json",
        stage="train_expert",
        inputs=inputs | {"base": str(base)},
        config=_in_full(recipe) | given | {"alpha": learner.alpha},
        facts=facts | {"base_sha256": base},
        started=started,
        outputs=[options.out / "curve.parquet"],
    )
    shutil.rmtree(options.checkpoints)


def _in_full(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe, whether it was given or is the default."""
    return recipe.train.model_dump(mode="json") | recipe.durations.model_dump(mode="json")


def _learner(options: argparse.Namespace, training: Training) -> "Learner":
    import torch

    from mergetime.training.expert import Learner

    dtype = getattr(torch, options.dtype)
    return Learner(options.base, options.base_id, training, dtype, options.seed, options.modality)


def _plan(options: argparse.Namespace, recipe: Recipe) -> "Plan":
    from mergetime.training.trainer import Plan

    return Plan(
        training=recipe.train,
        schedule=schedule_of(recipe.train),
        durations=durations_of(recipe.durations, recipe.train),
        seed=options.seed,
        bfloat16=options.dtype == "bfloat16",
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="SIGURG, SIGTERM and SIGINT write a checkpoint at the end of the step and exit with status 75; the same "
        "command then goes on from there.",
    )
    parser.add_argument("--base", type=Path, required=True, help="folder of the base, as fetched")
    parser.add_argument("--base-id", required=True, help="hub id of the base, for adapter_config.json")
    parser.add_argument("--modality", choices=names(), default=DEFAULT, help=f"of the base; default {DEFAULT}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True, help="dtype of the base")
    parser.add_argument("--train", type=Path, required=True, help="Parquet of examples, as prepared")
    parser.add_argument("--validation", type=Path, required=True, help="Parquet of examples, as prepared")
    parser.add_argument(
        "--recipe",
        metavar="JSON",
        required=True,
        help='how to train and what to keep: {"train": ..., "durations": ...} as under experts of a config',
    )
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
    write_atomically(file, text)


if __name__ == "__main__":
    main(run)
