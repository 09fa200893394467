# A study beside the published numbers and claims, and its results as a package for others.
PUBLISHED = sorted(
    str(file) for file in Path("config/papers/duration").rglob("*") if file.is_file()
)
ANALYSIS_FILES = {"mode_connectivity": ["mode_connectivity", "barriers"]}
ANALYSED = [
    f"{RESULTS}/analysis/{file}.parquet"
    for analysis in STUDY.analyses
    for file in ANALYSIS_FILES.get(analysis, [analysis])
]
TIDY = [f"{RESULTS}/{name}.parquet" for name in ("results", "samples", "curves")]
# Named one by one: in an output that is a folder, Snakemake leaves a file of its own.
PACKED = [
    f"{RESULTS}/package/{os.path.relpath(file, RESULTS)}" for file in [*TIDY, *ANALYSED]
] + expand(
    f"{RESULTS}/package/{{file}}",
    file=[
        "study.json",
        "README.md",
        "CITATION.cff",
        "ro-crate-metadata.json",
        "checksums.sha256",
    ],
)


rule compare_published:
    input:
        PUBLISHED,
        results=f"{RESULTS}/results.parquet",
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
        code=code_digest("compare_published"),
    shell:
        "python scripts/compare_published.py"
        " --results {input.results}"
        " --study {input.study}"
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/published/comparison 2> {{log}}"


rule audit_published:
    input:
        PUBLISHED,
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
        code=code_digest("audit_published"),
    shell:
        "python scripts/audit_published.py"
        f" --out-stem {RESULTS}/published/audit 2> {{log}}"


rule judge_claims:
    input:
        claims=STUDY.claims,
        samples=f"{RESULTS}/samples.parquet",
        study=f"{RESULTS}/study.json",
        analyses=ANALYSED,
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
        analyses=[f"--analysis {file}" for file in ANALYSED],
        code=code_digest("judge_claims"),
    shell:
        "python scripts/judge_claims.py"
        " --claims {input.claims}"
        " --samples {input.samples}"
        " --study {input.study}"
        " {params.analyses}"
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/claims 2> {{log}}"


rule claims:
    input:
        f"{RESULTS}/claims.md",


rule make_package:
    input:
        ANALYSED,
        TIDY,
        study=f"{RESULTS}/study.json",
    output:
        PACKED,
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
        code=code_digest("make_package"),
    shell:
        "python scripts/make_package.py"
        " --study $(dirname {input.study})"
        f" --out {RESULTS}/package 2> {{log}}"


rule package:
    input:
        f"{RESULTS}/package/checksums.sha256",
