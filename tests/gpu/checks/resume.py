"""An interrupted run against a whole one: the same adapter, to the byte."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.gpu.checking import Figure, Setting
from tests.gpu.inputs import base, examples, learner

STEPS, STOPPED_AFTER = 6, 3


def check(setting: Setting) -> Iterator[Figure]:
    """Four layers, one of them with full attention, trained twice."""
    from safetensors.torch import load_file

    from mergetime.config.experts import Training
    from mergetime.core.provenance import sha256
    from mergetime.modalities import learning
    from mergetime.training.durations import FixedSteps
    from mergetime.training.folders import step_folder
    from mergetime.training.run import train
    from mergetime.training.schedule import Schedule
    from mergetime.training.signals import Stop, Stopped
    from mergetime.training.trainer import Plan

    folder = base(setting, "0.8B", layers=4)
    training = Training(mode="lora", micro_batch_size=4)
    learns, data = learner(folder, training), examples(setting, folder, 64)
    plan = Plan(
        training=training,
        schedule=Schedule("constant", 1e-3, 0, STEPS),
        durations=FixedSteps((STOPPED_AFTER, STEPS), save_every=1),
        seed=1,
        bfloat16=True,
    )

    def run(name: str, stopped_after: int | None) -> Path:
        work, stop = setting.work / f"resume-{name}", Stop()

        def save(model: Any, kept: Path) -> None:
            learns.save(model, kept)
            if kept == step_folder(work, stopped_after or 0):
                stop.name = "SIGTERM"

        work.mkdir(parents=True, exist_ok=True)
        train(learning.get("causal_lm"), learns.build, data, data[:4], plan, work, save, stop)
        return step_folder(work, STEPS) / learns.form.weights

    for name in ("whole", "interrupted"):
        shutil.rmtree(setting.work / f"resume-{name}", ignore_errors=True)
    whole = run("whole", None)
    try:
        run("interrupted", STOPPED_AFTER)
        yield Figure("interruption", passed=False, note=f"the run was to stop after step {STOPPED_AFTER}")
    except Stopped as stopped:
        yield Figure("interruption", note=str(stopped))
    resumed = run("interrupted", None)
    ours, theirs = load_file(whole), load_file(resumed)
    difference = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    same = sha256(whole) == sha256(resumed)
    yield Figure("largest difference", difference, "", "the same bytes" if same else "the files differ", same)
    largest = max(float(tensor.abs().max()) for tensor in ours.values())
    yield Figure("largest weight", largest, "", "0: nothing was learnt", largest > 0)
