"""A micro-batch that the GPU's memory does not hold: training goes on with a smaller one."""

import shutil
from collections.abc import Iterator

from tests.gpu.checking import Figure, Setting, Skipped
from tests.gpu.inputs import base, examples, learner

STEPS = 3
SHARE = 0.6
"""Of the memory that the whole micro-batch was seen to take."""


def check(setting: Setting) -> Iterator[Figure]:
    """The same run twice, the second time with less memory than the first one took."""
    import torch

    from mergetime.config.experts import Training
    from mergetime.modalities import learning
    from mergetime.training.durations import FixedSteps
    from mergetime.training.run import Progress, train
    from mergetime.training.schedule import Schedule
    from mergetime.training.signals import Stop
    from mergetime.training.trainer import Plan

    folder = base(setting, "0.8B")
    training = Training(mode="lora", batch_size=8, micro_batch_size=8, gradient_checkpointing=False)
    learns, data = learner(folder, training), examples(setting, folder, 64)
    schedule, durations = Schedule("constant", 1e-4, 0, STEPS), FixedSteps((STEPS,), save_every=1)
    plan = Plan(training=training, schedule=schedule, durations=durations, seed=1, bfloat16=True)

    def run(name: str) -> Progress:
        work = setting.work / f"memory-{name}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        part = learning.get("causal_lm")
        return train(part, learns.build, data, data[:1], plan, work, lambda model, folder: None, Stop())

    whole = run("whole")
    yield Figure("micro-batch with all memory", whole.fit.micro_batch_size, "examples")
    if not torch.cuda.is_available():
        raise Skipped("without a GPU no memory can be taken away")
    torch.cuda.empty_cache()
    peak = torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, SHARE * peak / total))
    fitted = run("less").fit.micro_batch_size
    note = f"{SHARE:.0%} of the {peak >> 20} MiB that {whole.fit.micro_batch_size} examples took"
    yield Figure("micro-batch with less memory", fitted, "examples", note, fitted < whole.fit.micro_batch_size)
