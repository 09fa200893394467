# A study beside the published numbers and claims, and its results as a package for others.


rule compare_published:
    input:
        lambda _: publishing.printed(STUDY, "compare_published"),
        results=f"{RESULTS}/results.parquet",
        samples=f"{RESULTS}/samples.parquet",
        study=f"{RESULTS}/study.json",
    output:
        multiext(f"{RESULTS}/published/comparison", ".parquet", ".md", ".json"),
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
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/published/comparison 2> {{log}}"


rule audit_published:
    input:
        lambda _: publishing.printed(STUDY, "audit_published"),
    output:
        multiext(f"{RESULTS}/published/audit", ".parquet", ".md", ".json"),
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
        f" --out-stem {RESULTS}/published/audit 2> {{log}}"


rule judge_claims:
    input:
        claims=lambda _: publishing.judged_claims(STUDY),
        samples=f"{RESULTS}/samples.parquet",
        study=f"{RESULTS}/study.json",
        analyses=publishing.analysed(STUDY),
    output:
        multiext(f"{RESULTS}/claims", ".parquet", ".md", ".json"),
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
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/claims 2> {{log}}"


rule make_package:
    input:
        publishing.analysed(STUDY),
        publishing.tidy(STUDY),
        study=f"{RESULTS}/study.json",
    output:
        publishing.packed(STUDY),
        record=f"{RESULTS}/package.json",
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
        f" --out {RESULTS}/package 2> {{log}}"
