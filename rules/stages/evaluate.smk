EVALUATE = (
    "python scripts/evaluate.py"
    " --base $(dirname {input.base})"
    f" --study {RESULTS}"
    " {params.suite}"
    " {params.subjects}"
    " > {log} 2>&1"
)


rule evaluate_base:
    input:
        base=model_json,
        suite=lambda wildcards: suite_data(wildcards.split),
    output:
        evaluations_of("bases/{base}", "{split}"),
    log:
        f"logs/{STUDY.study}/evaluate_base/{{base}}/{{split}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/evaluate_base/{{base}}/{{split}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        EVALUATE_IN
    threads: threads_of("evaluate")
    resources:
        **resources_of("evaluate"),
    params:
        suite=lambda wildcards: suite_options(wildcards.split),
        subjects=subject_options(["bases/{base}"]),
        tasks=TASKS,
        code=code_digest("evaluate"),
    shell:
        EVALUATE


if STUDY.experts.imported:

    use rule evaluate_base as evaluate_imported with:
        input:
            base=model_json,
            weights=f"{RESULTS}/experts/{{base}}/imported/{{imported}}/adapter_model.safetensors",
            suite=lambda wildcards: suite_data(wildcards.split),
        output:
            evaluations_of("experts/{base}/imported/{imported}", "{split}"),
        log:
            f"logs/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.jsonl"
        params:
            suite=lambda wildcards: suite_options(wildcards.split),
            subjects=subject_options(["experts/{base}/imported/{imported}"]),
            tasks=TASKS,
            code=code_digest("evaluate"),


# A job takes several subjects, the durations of an expert or the methods of a pool: one rule a batch.
for number, batch in enumerate(grid.batches(DURATIONS, PER_JOB)):

    rule:
        name:
            f"evaluate_expert_{number}"
        input:
            base=model_json,
            weights=expand(
                f"{EXPERT}/{{duration}}/{EXPERT_FILES[0]}",
                duration=batch,
                allow_missing=True,
            ),
            suite=lambda wildcards: suite_data(wildcards.split),
        output:
            [
                evaluations_of(
                    f"experts/{{base}}/{{domain}}/seed-{{seed}}/{duration}", "{split}"
                )
                for duration in batch
            ],
        log:
            f"logs/{STUDY.study}/evaluate_expert/{{base}}/{{domain}}/seed-{{seed}}/{{split}}-{number}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/evaluate_expert/{{base}}/{{domain}}/seed-{{seed}}/{{split}}-{number}.jsonl"
        conda:
            "../../envs/mergetime.yaml"
        container:
            EVALUATE_IN
        threads: threads_of("evaluate")
        resources:
            **resources_of("evaluate", len(batch)),
        params:
            suite=lambda wildcards: suite_options(wildcards.split),
            subjects=subject_options(
                f"experts/{{base}}/{{domain}}/seed-{{seed}}/{duration}"
                for duration in batch
            ),
            tasks=TASKS,
            code=code_digest("evaluate"),
        shell:
            EVALUATE


for stem, merging, split, ids in (
    ("evaluate_merged", "merge_pool", "test", FINAL),
    ("evaluate_candidate", "merge_candidates", "validation", CANDIDATES),
):
    for number, batch in enumerate(grid.batches(ids, PER_JOB)):

        rule:
            name:
                f"{stem}_{number}"
            input:
                base=model_json,
                weights=made_by(
                    f"{merging}_{number}",
                    [merged_weights(merge_id) for merge_id in batch],
                ),
                experts=members_of,
                suite=suite_data(split),
            output:
                [
                    evaluations_of(
                        f"merged/{{base}}/{{pool}}/{merge_id}/seed-{{seed}}", split
                    )
                    for merge_id in batch
                ],
            log:
                f"logs/{STUDY.study}/{stem}/{{base}}/{{pool}}/seed-{{seed}}/{split}-{number}.log",
            benchmark:
                f"benchmarks/{STUDY.study}/{stem}/{{base}}/{{pool}}/seed-{{seed}}/{split}-{number}.jsonl"
            conda:
                "../../envs/mergetime.yaml"
            container:
                EVALUATE_IN
            threads: threads_of("evaluate")
            resources:
                **resources_of("evaluate", len(batch)),
            params:
                suite=lambda _, split=split: suite_options(split),
                subjects=lambda wildcards, batch=batch: merged_subject_options(
                    wildcards, batch
                ),
                tasks=TASKS,
                code=code_digest("evaluate"),
            shell:
                EVALUATE


# Judges read saved responses: another judge evaluates nothing again. The batches are those of the evaluations.
for stem, split, subjects in (
    ("judge_base", "{split}", ["bases/{base}"]),
    *(
        [("judge_imported", "{split}", ["experts/{base}/imported/{imported}"])]
        if STUDY.experts.imported
        else []
    ),
    *(
        (
            f"judge_expert_{number}",
            "{split}",
            [
                f"experts/{{base}}/{{domain}}/seed-{{seed}}/{duration}"
                for duration in batch
            ],
        )
        for number, batch in enumerate(grid.batches(DURATIONS, PER_JOB))
    ),
    *(
        (
            f"{stem}_{number}",
            split,
            [
                f"merged/{{base}}/{{pool}}/{merge_id}/seed-{{seed}}"
                for merge_id in batch
            ],
        )
        for stem, split, ids in (
            ("judge_merged", "test", FINAL),
            ("judge_candidate", "validation", CANDIDATES),
        )
        if split in JUDGED
        for number, batch in enumerate(grid.batches(ids, PER_JOB))
    ),
):

    rule:
        name:
            stem
        input:
            judges=lambda wildcards, split=split: judge_models(
                split.format(**wildcards)
            ),
            responses=made_by(
                stem.replace("judge", "evaluate"),
                [
                    f"{EVALUATIONS}/{subject}/{split}.{part}"
                    for subject in subjects
                    for part in ("samples.parquet", "parquet")
                ],
            ),
        output:
            [evaluations_of(subject, f"{split}.judged") for subject in subjects],
        log:
            f"logs/{STUDY.study}/{stem}/{subjects[0]}/{split}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/{stem}/{subjects[0]}/{split}.jsonl"
        wildcard_constraints:
            split=one_of(JUDGED),
        conda:
            "../../envs/mergetime.yaml"
        container:
            EVALUATE_IN
        threads: threads_of("judge_responses")
        resources:
            **resources_of("judge_responses", len(subjects)),
        params:
            split=lambda wildcards, split=split: split.format(**wildcards),
            judges=lambda wildcards, split=split: judge_options(
                split.format(**wildcards)
            ),
            subjects=subject_options(subjects),
            code=code_digest("judge_responses"),
        shell:
            "python scripts/judge_responses.py"
            f" --study {RESULTS}"
            " --split {params.split}"
            " {params.judges}"
            " {params.subjects}"
            " > {log} 2>&1"
