from snakemake.utils import min_version

min_version("9.27")


# A configfile given on the command line would be merged into the default, not replace it.
if "study" not in config:

    configfile: "config/demo.yaml"


include: "rules/common.smk"
include: "rules/suites.smk"
include: "rules/containers.smk"
include: "rules/resources.smk"
include: "rules/cluster.smk"
include: "rules/faults.smk"
include: "rules/demo.smk"
include: "rules/fetch.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/merge.smk"
include: "rules/evaluate.smk"
include: "rules/select.smk"
include: "rules/collect.smk"
include: "rules/analyse.smk"
include: "rules/publish.smk"
include: "rules/compare.smk"
include: "rules/report.smk"
include: "rules/verify.smk"
include: "rules/targets.smk"
include: "rules/plan.smk"


rule all:
    default_target: True
    input:
        expand(f"{RESULTS}/tables/{{table}}.md", table=TABLES),
        expand(f"{RESULTS}/figures/{{figure}}.pdf", figure=FIGURES),
        f"{RESULTS}/samples.parquet",
        expand(f"{RESULTS}/analysis/{{analysis}}.parquet", analysis=STUDY.analyses),


include: "rules/signatures.smk"
