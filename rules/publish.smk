# Tables and figures read Parquet alone, so that each is rebuilt without a model.
ACCURACY_TABLES = [f"table_{3 + number}" for number in range(min(3, len(STUDY.bases)))]
TABLES = ["table_2", *ACCURACY_TABLES]
FIGURES = ["figure_1"]
# Where a study merges several pools at a duration, tables and figures show the one that its config lists first.
POOL = next(iter(STUDY.pools))


rule make_table:
    input:
        f"{RESULTS}/results.parquet",
    output:
        multiext(
            f"{RESULTS}/tables/{{table}}", ".parquet", ".csv", ".md", ".tex", ".json"
        ),
    log:
        f"logs/{STUDY.study}/make_table/{{table}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_table/{{table}}.jsonl"
    wildcard_constraints:
        table=one_of(TABLES),
    localrule: True
    conda:
        "../envs/mergetime.yaml"
    params:
        code=code_digest("make_table"),
    shell:
        "python scripts/make_table.py"
        " --results {input}"
        " --table {wildcards.table}"
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/tables/{{wildcards.table}} 2> {{log}}"


rule make_health:
    input:
        results=f"{RESULTS}/results.parquet",
        curves=f"{RESULTS}/curves.parquet",
    output:
        multiext(f"{RESULTS}/tables/health", ".parquet", ".csv", ".md", ".tex", ".json"),
    log:
        f"logs/{STUDY.study}/make_table/health.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_table/health.jsonl"
    localrule: True
    conda:
        "../envs/mergetime.yaml"
    params:
        chance=json.dumps(
            {
                domain: STUDY.benchmarks[name].chance
                for domain, name in STUDY.suites.test.items()
            }
        ),
        code=code_digest("make_table"),
    shell:
        "python scripts/make_table.py"
        " --results {input.results}"
        " --curves {input.curves}"
        " --chance {params.chance:q}"
        " --table health"
        f" --out-stem {RESULTS}/tables/health 2> {{log}}"


rule make_figure:
    input:
        f"{RESULTS}/results.parquet",
    output:
        multiext(f"{RESULTS}/figures/{{figure}}", ".pdf", ".png", ".parquet", ".json"),
    log:
        f"logs/{STUDY.study}/make_figure/{{figure}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_figure/{{figure}}.jsonl"
    wildcard_constraints:
        figure=one_of(FIGURES),
    localrule: True
    conda:
        "../envs/mergetime.yaml"
    params:
        code=code_digest("make_figure"),
    shell:
        "python scripts/make_figure.py"
        " --results {input}"
        " --figure {wildcards.figure}"
        f" --pool {POOL}"
        f" --out-stem {RESULTS}/figures/{{wildcards.figure}} 2> {{log}}"
