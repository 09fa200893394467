# What people ask for by name; without a name: all, in the Snakefile.
rule tables:
    input:
        expand(f"{RESULTS}/tables/{{table}}.md", table=TABLES),


rule report:
    input:
        f"{RESULTS}/report.html",


rule interference:
    input:
        f"{RESULTS}/analysis/interference.parquet",


rule demo_base:
    input:
        "resources/demo/base/model.safetensors",


rule fetch:
    input:
        fetching.everything_fetched(STUDY),


for table in TABLES:

    rule:
        name:
            table
        input:
            f"{RESULTS}/tables/{table}.md",


for figure in FIGURES:

    rule:
        name:
            figure
        input:
            f"{RESULTS}/figures/{figure}.pdf",
