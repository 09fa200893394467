# Methods that need data: what an expert's own training data say of its weights.
rule measure_expert:
    input:
        base=model_json,
        expert=f"{RESULTS}/experts/{{base}}/{{expert}}/adapter_model.safetensors",
        data=training_data_of,
    output:
        statistic=f"{RESULTS}/statistics/{{base}}/{{expert}}/{{kind}}.safetensors",
        record=f"{RESULTS}/statistics/{{base}}/{{expert}}/{{kind}}.json",
    log:
        f"logs/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.jsonl"
    wildcard_constraints:
        expert="[^/]+/seed-[0-9]+/[^/]+|imported/[^/]+",
        kind="fisher|gram|mask",
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("measure_expert")
    resources:
        **resources_of("measure_expert"),
    params:
        options=measure_options,
        seed=STUDY.data_seed,
        code=code_digest("measure_expert"),
    shell:
        "python scripts/measure_expert.py"
        " --base $(dirname {input.base})"
        " --expert $(dirname {input.expert})"
        " --data {input.data}"
        " --kind {wildcards.kind}"
        " {params.options}"
        " --seed {params.seed}"
        " --out $(dirname {output.record}) > {log} 2>&1"


# A job merges several times, since loading torch takes longer than most merges. Its batches are those of evaluate.smk.
for stem, ids in (("merge_pool", FINAL), ("merge_candidates", CANDIDATES)):
    for number, batch in enumerate(grid.batches(ids, PER_JOB)):

        rule:
            name:
                f"{stem}_{number}"
            input:
                base=model_json,
                experts=members_of,
                selections=lambda wildcards, batch=batch: list(
                    selections_of(wildcards, batch).values()
                ),
                statistics=lambda wildcards, batch=batch: [
                    file
                    for merge_id in batch
                    for file in statistics_of(wildcards, merge_id).values()
                ],
            output:
                [merged_files(merge_id) for merge_id in batch],
            log:
                f"logs/{STUDY.study}/{stem}/{{base}}/{{pool}}/seed-{{seed}}/{number}.log",
            benchmark:
                f"benchmarks/{STUDY.study}/{stem}/{{base}}/{{pool}}/seed-{{seed}}/{number}.jsonl"
            conda:
                "../../envs/mergetime.yaml"
            container:
                container_of("train")
            threads: threads_of("merge_pool")
            resources:
                **resources_of("merge_pool", len(batch)),
            params:
                merges=lambda wildcards, batch=batch: pool_options(wildcards, batch),
                code=digests.of_merges(STUDY, batch),
            shell:
                "python scripts/merge_pool.py"
                " --base $(dirname {input.base})"
                " --seed {wildcards.seed}"
                " --threads {threads}"
                " {params.merges}"
                " > {log} 2>&1"
