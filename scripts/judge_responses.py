"""Judge the saved responses of subjects that were evaluated; nothing is generated but the judge's answers."""

import argparse
import os
import time
from pathlib import Path

from mergetime.core import provenance
from mergetime.core.errors import main
from mergetime.evaluation.judging import Judgement, answers_of, judged_rows, to_judge


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--study", type=Path, required=True, help="folder of the study, results/NAME")
    add("--split", required=True, help="split whose responses are judged")
    add("--subject", action="append", required=True, metavar="PATH", help="evaluated subject, below evaluations/")
    add(
        "--judge",
        action="append",
        required=True,
        metavar="JSON",
        help="an object: benchmark, kind (wildguard), model (folder), dtype, batch_size, weights (items or tasks);"
        " repeat",
    )
    options = parser.parse_args()
    started = time.time()
    judgements = [Judgement.parse(text) for text in options.judge]
    os.environ.update({"HF_HUB_OFFLINE": "1"})
    import pandas as pd
    import pyarrow.parquet as pq

    def saved(subject: str, part: str) -> Path:
        return Path(options.study / "evaluations" / subject / f"{options.split}.{part}")

    asked = {
        (subject, judgement.benchmark): to_judge(
            pq.read_table(saved(subject, "samples.parquet")).to_pylist(), judgement
        )
        for subject in options.subject
        for judgement in judgements
    }
    answers = answers_of(judgements, asked)
    # The judge has read the responses of all subjects together: each record says its share of the time.
    share_s = (time.time() - started) / len(options.subject)
    for subject in options.subject:
        begun = time.time() - share_s
        results = pq.read_table(saved(subject, "parquet")).to_pylist()
        metrics, samples, facts = [], [], {}
        for judgement in judgements:
            key = (subject, judgement.benchmark)
            found = judged_rows(judgement, results, asked[key], answers[key])
            metrics += found[0]
            samples += found[1]
            facts[judgement.benchmark] = found[2]
        outputs = []
        for part, rows in (("judged.samples.parquet", samples), ("judged.parquet", metrics)):
            path = saved(subject, part)
            beside = path.with_name(f".{path.name}.part")
            pd.DataFrame(rows).to_parquet(beside, index=False)
            beside.replace(path)
            outputs.append(path)
        models = {str(judgement.model): judgement.model / "fetched.json" for judgement in judgements}
        provenance.record(
            saved(subject, "judged.json"),
            stage="judge_responses",
            inputs=models | {part: saved(subject, part) for part in ("samples.parquet", "parquet")},
            config={"split": options.split, "judge": options.judge, "subject": subject},
            facts=facts,
            started=begun,
            outputs=outputs,
        )


if __name__ == "__main__":
    main(run)
