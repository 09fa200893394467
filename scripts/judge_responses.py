"""Judge the saved responses of subjects that were evaluated; nothing is generated but the judge's answers."""

import argparse
import os
import time
from pathlib import Path

from mergetime.config.fields import Strict
from mergetime.config.sections import parse_json_list
from mergetime.core import provenance
from mergetime.core.errors import main
from mergetime.evaluation import writing
from mergetime.evaluation.judging import Judgement, answers_of, judged_rows, to_judge


class JudgedSubject(Strict):
    """Whose responses are judged; the files of its evaluation, and what is written, begin with these paths."""

    subject: str
    responses: Path
    out: Path


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--split", required=True, help="split whose responses are judged, for the record")
    add(
        "--subjects",
        required=True,
        metavar="JSON",
        help="a list of objects: subject (for the record), responses and out (paths that the files of its evaluation,"
        " and what is written, begin with, such as .../test and .../test.judged)",
    )
    add(
        "--judgements",
        required=True,
        metavar="JSON",
        help="a list of judges as in a config, each with benchmark, folder (of the judge) and weights (items or tasks)",
    )
    options = parser.parse_args()
    started = time.time()
    judgements = parse_json_list(Judgement, options.judgements, "--judgements")
    subjects = parse_json_list(JudgedSubject, options.subjects, "--subjects")
    os.environ.update({"HF_HUB_OFFLINE": "1"})
    import pyarrow.parquet as pq

    asked = {
        (subject.subject, judgement.benchmark): to_judge(
            pq.read_table(writing.beside(subject.responses, "samples.parquet")).to_pylist(), judgement
        )
        for subject in subjects
        for judgement in judgements
    }
    answers = answers_of(judgements, asked)
    # The judge has read the responses of all subjects together: each record says its share of the time.
    share_s = (time.time() - started) / len(subjects)
    for subject in subjects:
        begun = time.time() - share_s
        results = pq.read_table(writing.beside(subject.responses, "parquet")).to_pylist()
        metrics, samples, facts = [], [], {}
        for judgement in judgements:
            key = (subject.subject, judgement.benchmark)
            judged, by_item, facts[judgement.benchmark] = judged_rows(judgement, results, asked[key], answers[key])
            metrics += judged
            samples += by_item
        outputs = writing.write(subject.out, metrics, samples)
        models = {str(judgement.folder): judgement.folder / "fetched.json" for judgement in judgements}
        provenance.record(
            writing.beside(subject.out, "json"),
            stage="judge_responses",
            inputs=models
            | {suffix: writing.beside(subject.responses, suffix) for suffix in ("samples.parquet", "parquet")},
            config={
                "split": options.split,
                "judgements": [judgement.model_dump(mode="json") for judgement in judgements],
                "subject": subject.subject,
            },
            facts=facts,
            started=begun,
            outputs=outputs,
        )


if __name__ == "__main__":
    main(run)
