rule describe_study:
    output:
        f"{RESULTS}/study.json",
    log:
        f"logs/{STUDY.study}/describe_study.log",
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        # A function, because braces in a plain string would be taken for wildcards.
        study=lambda _: STUDY.model_dump_json(),
    shell:
        "printf %s {params.study:q} > {output} 2> {log}"


rule collect_results:
    input:
        study=f"{RESULTS}/study.json",
        evaluations=[
            f"{EVALUATIONS}/{subject.path}/{split}.parquet"
            for subject in grid.subjects(STUDY)
            for split in subject.splits
        ],
        experts=(
            expand(
                f"{EXPERT}/expert.json",
                base=STUDY.bases,
                domain=STUDY.domains,
                seed=SEEDS,
            )
            if TRAIN
            else []
        ),
        judged=judged_results(),
    output:
        results=f"{RESULTS}/results.parquet",
        samples=f"{RESULTS}/samples.parquet",
        curves=f"{RESULTS}/curves.parquet",
        costs=f"{RESULTS}/costs.parquet",
        record=f"{RESULTS}/results.json",
    log:
        f"logs/{STUDY.study}/collect_results.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_results.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    threads: threads_of("collect_results")
    resources:
        **resources_of("collect_results"),
    params:
        code=code_digest("collect_results"),
    shell:
        "python scripts/collect_results.py"
        " --study {input.study}"
        " --out $(dirname {output.results}) 2> {log}"
