"""Training steps at true shapes: their rate, their memory beside the estimate, and that the loss falls."""

import shutil
from collections.abc import Iterator
from typing import Any

from tests.gpu.checking import Figure, Setting
from tests.gpu.inputs import base, examples, learner

STEPS = 12
WINDOW = 4
"""Steps of a row of the curve; those before the first row find kernels their settings."""
RATE_AT = {"4B": 8000, "0.8B": 30000}
"""Tokens a second that are wanted of an H100 or H200."""


def check(setting: Setting, *, size: str, mode: str) -> Iterator[Figure]:
    """Some steps of a run as the pipeline makes it, which chooses its micro-batch by the memory there is."""
    import torch

    from mergetime.config.experts import Training
    from mergetime.modalities import learning
    from mergetime.training import memory
    from mergetime.training.durations import FixedSteps
    from mergetime.training.run import train
    from mergetime.training.schedule import Schedule
    from mergetime.training.signals import Stop
    from mergetime.training.trainer import Plan

    folder = base(setting, size)
    work = setting.work / f"training-{size}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    training = Training.model_validate({"mode": mode})
    part, data, learns = learning.get("causal_lm"), examples(setting, folder, 256), learner(folder, training)
    plan = Plan(
        training=training,
        schedule=Schedule("constant", 1e-4, 0, STEPS),
        durations=FixedSteps((STEPS,), save_every=WINDOW // 4),
        seed=1,
        bfloat16=True,
    )
    loads: list[memory.Load] = []

    def build() -> Any:
        model = learns.build()
        loads.append(memory.load_of(part, model, data, bfloat16=True))
        return model

    done = train(part, build, data, data[:1], plan, work, lambda model, folder: None, Stop())
    rows = done.meter.rows[1:]
    fit = f"micro-batches of {done.fit.micro_batch_size}{', activations recomputed' * done.fit.checkpointing}"
    for row, name in ((rows[0], "rate while kernels are tuned"), (rows[-1], "rate")):
        yield Figure(name, row["tokens_per_second"], "tokens/s", f"{fit}; wanted {RATE_AT[size]:,}")
    yield Figure("padding", 100 * (1 - done.meter.tokens / done.meter.positions), "%")
    first, last = (float(row["train_loss"] or 0) for row in (rows[0], rows[-1]))
    yield Figure("loss", last, "nats", f"{first:.3f} in the first {WINDOW} steps", last < first)
    estimate = memory.estimated_bytes(loads[-1], done.fit.micro_batch_size, checkpointing=done.fit.checkpointing)
    yield Figure("memory estimated", estimate / 2**20, "MiB", fit)
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        peak = torch.cuda.max_memory_allocated()
        yield Figure("memory of tensors", peak / 2**20, "MiB", f"reserved {torch.cuda.max_memory_reserved() >> 20}")
        yield Figure("estimated / measured", estimate / (peak + context), "", f"context {context >> 20} MiB")
