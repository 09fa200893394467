"""TRL's SFTTrainer beside the pipeline's training: same model, data and batches, each in a process of its own."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator

from tests.gpu.checking import ROOT, Figure, Setting, Skipped

WANTED = 1.2
OPTIONS = {
    "true": ["--shape", "0.8b", "--longest", "900", "--steps", "12", "--warmup", "4", "--examples", "256"],
    "tiny": ["--shape", "demo", "--longest", "60", "--steps", "8", "--warmup", "4", "--examples", "64"],
}


def check(setting: Setting) -> Iterator[Figure]:
    """Both rates, without the steps in which kernels are tuned, and their ratio."""
    if not importlib.util.find_spec("trl"):
        raise Skipped("trl is not installed; pip install --no-deps trl==1.16.0")
    rates = {}
    for program in ("trl", "mergetime"):
        command = [sys.executable, str(ROOT / "tests/benchmarks/train/run.py"), "--one", program]
        done = subprocess.run([*command, *OPTIONS[setting.shape]], stdout=subprocess.PIPE, text=True, check=True)
        run = json.loads(done.stdout.splitlines()[-1])
        rates[program] = run["tokens_per_second"]
        note = f"padding {run['padding']:.0%}, peak {run['memory_mb']:,.0f} MiB"
        yield Figure(f"rate of {program}", rates[program], "tokens/s", note)
    yield Figure("mergetime / TRL", rates["mergetime"] / rates["trl"], "", f"wanted {WANTED}")
