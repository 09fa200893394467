# One page with everything that a study has, for people to open.


rule make_report:
    input:
        TIDY,
        expand(f"{RESULTS}/tables/{{table}}.parquet", table=TABLES),
        expand(
            f"{RESULTS}/figures/{{figure}}.{{suffix}}",
            figure=FIGURES,
            suffix=["png", "parquet"],
        ),
        f"{RESULTS}/claims.parquet",
        f"{RESULTS}/published/comparison.parquet",
        f"{RESULTS}/published/audit.parquet",
        "scripts/mergetime/report/page.html.jinja",
        claims=STUDY.claims,
        study=f"{RESULTS}/study.json",
    output:
        page=f"{RESULTS}/report.html",
        record=f"{RESULTS}/report.json",
    log:
        f"logs/{STUDY.study}/make_report.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_report.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        code=code_digest("make_report"),
    shell:
        "python scripts/make_report.py"
        " --study $(dirname {input.study})"
        " --claims {input.claims}"
        f" --pool {POOL}"
        f" --benchmarks benchmarks/{STUDY.study}"
        " --out {output.page} 2> {log}"
