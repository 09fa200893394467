"""Compare the training throughput of mergetime's run with TRL's SFTTrainer: same model, data, batches and optimizer.

The two take turns, each in a process of its own; the table holds medians.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ("mergetime", "trl")
RANK = 16


@dataclass(frozen=True)
class Run:
    """One run of one program: non-padding tokens a second of training after the warm-up, and what it took.

    ``padding`` is the share of positions that are padding; ``memory_mb`` is the peak on the GPU, or of the process
    where there is none.
    """

    program: str
    tokens_per_second: float
    tokens: int
    padding: float
    memory_mb: float
    loss: float


def chats(count: int, longest: int, seed: int) -> list[tuple[str, str]]:
    """Prompts and responses of strongly varying lengths: log-normal, as those of instruction data are, up to a limit."""
    rng = random.Random(seed)
    words = ["the", "sum", "of", "two", "numbers", "is", "what", "we", "look", "for", "when", "asked", "to", "add"]

    def text(median: float) -> str:
        number = min(longest // 2, max(3, round(rng.lognormvariate(0, 0.9) * median)))
        return " ".join(rng.choice(words) for _ in range(number))

    return [(text(longest / 12), text(longest / 8)) for _ in range(count)]


def build(shape: str, folder: Path) -> Any:
    """The base of a run: the demo's, or random weights at the shape of Qwen3.5 0.8B."""
    import torch
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    from mergetime.modalities.causal_lm.loading import load_base

    if shape == "demo":
        return load_base(folder, dtype=torch.float32, four_bit=False)
    config = Qwen3_5TextConfig(
        vocab_size=248_320,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=24,
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model: Any = Qwen3_5ForCausalLM(config)
        return model.to(torch.bfloat16)


def examples(options: argparse.Namespace) -> list[Any]:
    """The chats as the pipeline encodes them."""
    from transformers import AutoTokenizer

    from mergetime.data.format import chat
    from mergetime.modalities.causal_lm.encoding import encode_chat

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    pairs = chats(options.examples, options.longest, seed=1)
    return [encode_chat(tokenizer, chat(prompt, response)) for prompt, response in pairs]


def with_mergetime(options: argparse.Namespace, work: Path) -> Run:
    """One run through the pipeline's own training, without validations but the one that starts a curve."""
    import torch

    from mergetime.config.experts import Training
    from mergetime.modalities import learning
    from mergetime.training.durations import FixedSteps
    from mergetime.training.model import add_lora
    from mergetime.training.run import train
    from mergetime.training.schedule import Schedule
    from mergetime.training.signals import Stop
    from mergetime.training.trainer import Plan

    plan = Plan(
        training=Training(
            batch_size=options.batch_size,
            micro_batch_size=options.micro_batch_size,
            gradient_checkpointing=False,
            group_by_length=not options.mixed,
        ),
        schedule=Schedule("constant", 1e-4, 0, options.steps),
        # A row of the curve ends where the count begins.
        durations=FixedSteps((options.steps,), save_every=options.warmup // 4 or options.steps),
        seed=1,
        bfloat16=options.shape != "demo",
    )
    data = examples(options)
    done = train(
        learning.get("causal_lm"),
        lambda: add_lora(learning.get("causal_lm"), build(options.shape, options.base), rank=RANK, alpha=RANK, seed=1),
        data,
        data[:1],
        plan,
        work,
        lambda model, folder: None,
        Stop(),
    )
    meter = done.meter
    before = [row for row in meter.rows[1:] if int(row["step"] or 0) <= options.warmup]
    tokens = meter.tokens - int(before[-1]["tokens"] or 0 if before else 0)
    seconds = meter.training_seconds
    for earlier, row in pairwise([meter.rows[0], *before]):
        seconds -= (int(row["tokens"] or 0) - int(earlier["tokens"] or 0)) / float(row["tokens_per_second"] or 1)
    return Run(
        "mergetime",
        tokens / seconds,
        meter.tokens,
        1 - meter.tokens / meter.positions,
        peak_mb(torch),
        float(meter.rows[-1]["train_loss"] or 0),
    )


def with_trl(options: argparse.Namespace, work: Path) -> Run:
    """One run of SFTTrainer on the same tokens, told to do neither more nor less."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from mergetime.modalities import learning
    from mergetime.training.model import add_lora

    clock: list[float] = []
    counts, counted = [0, 0], [0]

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock[:] = [time.monotonic()]

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == options.warmup:
                finish(torch)
                clock[:], counted[:] = [time.monotonic()], [counts[0]]

    class Counted(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *given: Any) -> Any:
            mask = inputs["attention_mask"]
            counts[0] += int(mask.sum())
            counts[1] += mask.numel()
            return super().training_step(model, inputs, *given)

    data = Dataset.from_list([{"input_ids": one.ids, "labels": one.labels} for one in examples(options)])
    trainer = Counted(
        model=add_lora(learning.get("causal_lm"), build(options.shape, options.base), rank=RANK, alpha=RANK, seed=1),
        args=SFTConfig(
            output_dir=str(work),
            per_device_train_batch_size=options.micro_batch_size,
            gradient_accumulation_steps=options.batch_size // options.micro_batch_size,
            max_steps=options.steps,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            gradient_checkpointing=False,
            max_length=None,
            bf16=options.shape != "demo",
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_steps=options.steps,
            disable_tqdm=True,
            report_to=[],
            seed=1,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(options.base),
        callbacks=[Clock()],
    )
    result = trainer.train()
    finish(torch)
    seconds = time.monotonic() - clock[0]
    rate = (counts[0] - counted[0]) / seconds
    return Run("trl", rate, counts[0], 1 - counts[0] / counts[1], peak_mb(torch), result.training_loss)


def finish(torch: Any) -> None:
    """Wait until the GPU has done all it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb(torch: Any) -> float:
    """Peak memory in MiB: of tensors on the GPU, or of this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["demo", "0.8b"], default="demo", help="0.8b: random weights, for a GPU")
    parser.add_argument("--base", type=Path, default=ROOT / "config/demo_base", help="tokenizer and the demo's weights")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--longest", type=int, default=384, help="words that a chat is limited to")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument(
        "--warmup", type=int, default=0, help="first steps that the rate leaves out, in fours: kernels are tuned there"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mixed", action="store_true", help="without grouping by length, for what else differs")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="count seconds of this process on the CPU, for a busy machine"
    )
    parser.add_argument("--one", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.cpu_seconds:
            # Both programs are timed by this clock.
            time.monotonic = time.process_time
        with tempfile.TemporaryDirectory() as work:
            run = with_mergetime if options.one == "mergetime" else with_trl
            print(json.dumps(asdict(run(options, Path(work)))))
        return

    runs: list[Run] = []
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{os.environ.get('PYTHONPATH', '')}"}
    for number in range(options.repeats):
        # Whoever goes second may find the machine warmer.
        for program in PROGRAMS if number % 2 == 0 else reversed(PROGRAMS):
            command = [sys.executable, __file__, *sys.argv[1:], "--one", program]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(Run(**json.loads(done.stdout.splitlines()[-1])))
            print(f"{program}: {runs[-1].tokens_per_second:.0f} tokens/s", file=sys.stderr, flush=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {options.repeats} runs each, medians, "
        f"{'CPU' if options.cpu_seconds else 'wall'} seconds\n"
    )
    print("| program | tokens/s | tokens | padding | peak MB | mean loss |\n|---|---:|---:|---:|---:|---:|")
    medians = {}
    for program in PROGRAMS:
        mine = [run for run in runs if run.program == program]
        medians[program] = statistics.median(run.tokens_per_second for run in mine)
        memory = statistics.median(run.memory_mb for run in mine)
        print(
            f"| {program} | {medians[program]:.0f} | {mine[0].tokens} | {mine[0].padding:.1%} | {memory:.0f} "
            f"| {mine[0].loss:.4f} |"
        )
    print(f"\nratio {medians['mergetime'] / medians['trl']:.2f}")


if __name__ == "__main__":
    main()
