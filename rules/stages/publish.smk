# Tables and figures read Parquet alone, so that each is rebuilt without a model. Which there are, and what each reads, is
# in scripts/mergetime/papers, folder by folder, and for those of every study in scripts/mergetime/publishing.


rule make_table:
    input:
        lambda wildcards: publishing.inputs(STUDY, wildcards.table),
    output:
        multiext(
            PATHS.table_stem("{table}"), ".parquet", ".csv", ".md", ".tex", ".json"
        ),
    log:
        f"logs/{STUDY.study}/make_table/{{table}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_table/{{table}}.jsonl"
    wildcard_constraints:
        table=one_of(PAPER.tables),
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        options=lambda wildcards: publishing.options(STUDY, wildcards.table),
        code=lambda wildcards: publishing.code(STUDY, wildcards.table, "make_table"),
    shell:
        "python scripts/make_table.py"
        " --table {wildcards.table}"
        " {params.options:q}"
        f" --pool={POOL}"
        f" --out-stem {PATHS.table_stem('{wildcards.table}')} 2> {{log}}"


rule make_figure:
    input:
        lambda wildcards: publishing.inputs(STUDY, wildcards.figure),
    output:
        multiext(PATHS.figure_stem("{figure}"), ".pdf", ".png", ".parquet", ".json"),
    log:
        f"logs/{STUDY.study}/make_figure/{{figure}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/make_figure/{{figure}}.jsonl"
    wildcard_constraints:
        figure=one_of(PAPER.figures),
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        options=lambda wildcards: publishing.options(STUDY, wildcards.figure),
        code=lambda wildcards: publishing.code(STUDY, wildcards.figure, "make_figure"),
    shell:
        "python scripts/make_figure.py"
        " --figure {wildcards.figure}"
        " {params.options:q}"
        f" --pool={POOL}"
        f" --out-stem {PATHS.figure_stem('{wildcards.figure}')} 2> {{log}}"
