"""Pre-train the demo's base on a general mixture: about 20 minutes on one core."""

import argparse
import tempfile
import time
from pathlib import Path

from mergetime.core import provenance
from mergetime.core.errors import main


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model and its tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=150_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()
    started = time.time()

    # Imports torch and transformers, so after --help.
    from mergetime.demo.base import pretrain

    with tempfile.TemporaryDirectory() as scratch:
        pretrain(
            options.out,
            scratch,
            seed=options.seed,
            examples=options.examples,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        )
    provenance.record(
        options.out / "pretrained.json",
        stage="pretrain_demo_base",
        inputs={},
        config={name: getattr(options, name) for name in ("seed", "examples", "batch_size", "learning_rate")},
        facts={},
        started=started,
        outputs=sorted(options.out.iterdir()),
    )


if __name__ == "__main__":
    main(run)
