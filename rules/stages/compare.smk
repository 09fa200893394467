# A study beside the published numbers and claims, and its results as a package for others.


rule compare_published:
    input:
        lambda _: publishing.printed(STUDY, "compare_published"),
        results=PATHS.tidy("results"),
        samples=PATHS.tidy("samples"),
        study=PATHS.study,
    output:
        multiext(PATHS.published_stem("comparison"), ".parquet", ".md", ".json"),
    log:
        f"logs/{STUDY.study}/compare_published.log",
    benchmark:
        f"benchmarks/{STUDY.study}/compare_published.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        code=PAPER.code("compare_published"),
    shell:
        "python scripts/compare_published.py"
        " --results {input.results}"
        " --samples {input.samples}"
        " --study {input.study}"
        f" --pool={POOL}"
        f" --out-stem {PATHS.published_stem('comparison')} 2> {{log}}"


rule audit_published:
    input:
        lambda _: publishing.printed(STUDY, "audit_published"),
    output:
        multiext(PATHS.published_stem("audit"), ".parquet", ".md", ".json"),
    log:
        f"logs/{STUDY.study}/audit_published.log",
    benchmark:
        f"benchmarks/{STUDY.study}/audit_published.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        code=PAPER.code("audit_published"),
    shell:
        "python scripts/audit_published.py"
        f" --paper {STUDY.paper}"
        f" --out-stem {PATHS.published_stem('audit')} 2> {{log}}"


rule judge_claims:
    input:
        claims=lambda _: publishing.judged_claims(STUDY),
        samples=PATHS.tidy("samples"),
        study=PATHS.study,
        analyses=publishing.analysed(STUDY),
    output:
        multiext(PATHS.claims_stem, ".parquet", ".md", ".json"),
    log:
        f"logs/{STUDY.study}/judge_claims.log",
    benchmark:
        f"benchmarks/{STUDY.study}/judge_claims.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    threads: threads_of("judge_claims")
    resources:
        **resources_of("judge_claims"),
    params:
        analyses=[f"--analysis={file}" for file in publishing.analysed(STUDY)],
        code=PAPER.code("judge_claims"),
    shell:
        "python scripts/judge_claims.py"
        " --claims {input.claims}"
        " --samples {input.samples}"
        " --study {input.study}"
        " {params.analyses:q}"
        f" --pool={POOL}"
        f" --out-stem {PATHS.claims_stem} 2> {{log}}"


rule make_package:
    input:
        publishing.analysed(STUDY),
        publishing.tidy(STUDY),
        study=PATHS.study,
    output:
        publishing.packed(STUDY),
        record=PATHS.package_record,
    log:
        f"logs/{STUDY.study}/make_package.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_package.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        code=PAPER.code("make_package"),
    shell:
        "python scripts/make_package.py"
        " --study $(dirname {input.study})"
        f" --out {PATHS.package()} 2> {{log}}"
