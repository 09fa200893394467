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
        benchmarks=lambda wildcards: benchmark_json(wildcards.split),
    output:
        evaluations_of("bases/{base}", "{split}"),
    log:
        f"logs/{STUDY.study}/evaluate_base/{{base}}/{{split}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/evaluate_base/{{base}}/{{split}}.jsonl"
    conda:
        "../envs/mergetime.yaml"
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        suite=lambda wildcards: suite_options(wildcards.split),
        subjects=subject_options,
        tasks=TASKS,
        code=code_digest("evaluate"),
    shell:
        EVALUATE


use rule evaluate_base as evaluate_imported with:
    input:
        base=model_json,
        weights=f"{RESULTS}/experts/{{base}}/imported/{{imported}}/adapter_model.safetensors",
        benchmarks=lambda wildcards: benchmark_json(wildcards.split),
    output:
        evaluations_of("experts/{base}/imported/{imported}", "{split}"),
    log:
        f"logs/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.jsonl"


# A job takes several subjects, the durations of an expert or the methods of a pool: one rule a batch.
for number, batch in enumerate(grid.batches(DURATIONS, PER_JOB)):

    rule:
        name:
            f"evaluate_expert_{number}"
        input:
            base=model_json,
            weights=expand(
                f"{EXPERT}/{{duration}}/adapter_model.safetensors",
                duration=batch,
                allow_missing=True,
            ),
            benchmarks=lambda wildcards: benchmark_json(wildcards.split),
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
            "../envs/mergetime.yaml"
        resources:
            mem_mb=16000,
            runtime=240,
        params:
            suite=lambda wildcards: suite_options(wildcards.split),
            subjects=subject_options,
            tasks=TASKS,
            code=code_digest("evaluate"),
        shell:
            EVALUATE


for stem, split, ids in (
    ("evaluate_merged", "test", FINAL),
    ("evaluate_candidate", "validation", CANDIDATES),
):
    for number, batch in enumerate(grid.batches(ids, PER_JOB)):

        rule:
            name:
                f"{stem}_{number}"
            input:
                base=model_json,
                weights=[merged_weights(merge_id) for merge_id in batch],
                experts=members_of,
                benchmarks=benchmark_json(split),
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
                "../envs/mergetime.yaml"
            resources:
                mem_mb=16000,
                runtime=240,
            params:
                suite=suite_options(split),
                subjects=subject_options,
                tasks=TASKS,
                code=code_digest("evaluate"),
            shell:
                EVALUATE
