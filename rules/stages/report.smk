# One page with everything that a study has, for people to open.


rule make_report:
    input:
        publishing.tidy(STUDY),
        publishing.reported(STUDY),
        "scripts/mergetime/report/page.html.jinja",
        claims=publishing.claims(STUDY) or [],
        study=PATHS.study,
    output:
        page=PATHS.report(),
        record=PATHS.report("json"),
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
        claims=lambda _, input: [f"--claims={input.claims}"] if input.claims else [],
        code=PAPER.code("make_report"),
    shell:
        "python scripts/make_report.py"
        " --study $(dirname {input.study})"
        " {params.claims:q}"
        f" --pool={POOL}"
        f" --benchmarks benchmarks/{STUDY.study}"
        " --out {output.page} 2> {log}"
