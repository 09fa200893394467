# Methods that need data: what an expert's own training data say of its weights.
rule measure_expert:
    input:
        base=model_json,
        expert=f"{PATHS.folder(layout.member('{base}', '{expert}'))}/{forms.ADAPTER.weights}",
        data=lambda wildcards: merging.measured_data(GRID, wildcards.expert),
    output:
        statistic=PATHS.statistic("{base}/{expert}", "{kind}"),
        record=PATHS.statistic("{base}/{expert}", "{kind}", "json"),
    log:
        f"logs/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.jsonl"
    wildcard_constraints:
        expert=layout.EXPERT_BELOW_BASE,
        kind="fisher|gram|mask",
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("measure_expert")
    resources:
        **resources_of("measure_expert"),
    params:
        options=lambda wildcards: merging.measure_options(
            GRID, wildcards.base, wildcards.kind
        ),
        seed=STUDY.data_seed,
        code=lambda wildcards: digests.on_base(STUDY, wildcards.base, "measure_expert"),
    shell:
        "python scripts/measure_expert.py"
        " --base $(dirname {input.base})"
        " --expert $(dirname {input.expert})"
        " --data {input.data}"
        " --kind {wildcards.kind}"
        " {params.options:q}"
        " --seed {params.seed}"
        " --out $(dirname {output.record}) > {log} 2>&1"


# A job merges several times, since loading torch takes longer than most merges.
for jobs in MERGE_BATCHES:

    rule:
        name:
            jobs.merge_rule
        input:
            base=model_json,
            experts=members_of,
            needed=lambda wildcards, jobs=jobs: merging.needed(
                GRID, *pool_of(wildcards), jobs.members
            ),
        output:
            [
                temp(file) if merging.is_temporary(GRID, file) else file
                for file in merging.files(GRID, jobs.members, jobs.pools[0])
            ],
        log:
            f"logs/{STUDY.study}/{jobs.merge}/{{base}}/{{pool}}/seed-{{seed}}/{jobs.number}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/{jobs.merge}/{{base}}/{{pool}}/seed-{{seed}}/{jobs.number}.jsonl"
        wildcard_constraints:
            pool=one_of(jobs.pools),
        conda:
            "../../envs/mergetime.yaml"
        container:
            container_of("train")
        threads: threads_of("merge_pool")
        resources:
            **resources_of("merge_pool", len(jobs.members)),
        params:
            experts=lambda wildcards: merging.expert_options(GRID, *pool_of(wildcards)),
            merges=lambda wildcards, jobs=jobs: merging.merge_json(
                GRID, *pool_of(wildcards), jobs.members
            ),
            code=digests.of_merges(STUDY, jobs.members),
        shell:
            "python scripts/merge_pool.py"
            " --base $(dirname {input.base})"
            " {params.experts:q}"
            " --seed {wildcards.seed}"
            " --threads {threads}"
            " --merges {params.merges:q} > {log} 2>&1"
