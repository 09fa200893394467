rule describe_study:
    output:
        PATHS.study,
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
        study=PATHS.study,
        evaluations=collecting.evaluated(GRID),
        experts=collecting.trainings(GRID),
        judged=collecting.judged(GRID),
    output:
        results=PATHS.tidy("results"),
        samples=PATHS.tidy("samples"),
        curves=PATHS.tidy("curves"),
        costs=PATHS.tidy("costs"),
        record=PATHS.tidy("results", "json"),
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
