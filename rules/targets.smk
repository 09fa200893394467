# What people ask for by name; without a name: all, in the Snakefile.
rule tables:
    input:
        expand(f"{RESULTS}/tables/{{table}}.md", table=TABLES),


rule report:
    input:
        f"{RESULTS}/report.html",


rule claims:
    input:
        f"{RESULTS}/claims.md",


rule package:
    input:
        f"{RESULTS}/package/checksums.sha256",


rule interference:
    input:
        f"{RESULTS}/analysis/interference.parquet",


rule bias_variance:
    input:
        f"{RESULTS}/analysis/bias_variance.parquet",


rule mode_connectivity:
    input:
        f"{RESULTS}/analysis/mode_connectivity.parquet",
        f"{RESULTS}/analysis/barriers.parquet",


rule demo_base:
    input:
        f"{layout.DEMO_BASE}/{forms.CHECKPOINT.weights}",


rule fetch:
    input:
        fetching.everything_fetched(STUDY),


# Also those that this study cannot have: asking for one says why.
for table in PAPER.tables:

    rule:
        name:
            table
        input:
            f"{RESULTS}/tables/{table}.md",


for figure in PAPER.figures:

    rule:
        name:
            figure
        input:
            f"{RESULTS}/figures/{figure}.pdf",
