from snakemake.utils import min_version

min_version("9.27")


# A configfile given on the command line would be merged into the default, not replace it.
if "study" not in config:

    configfile: "config/demo.yaml"


include: "rules/common.smk"
include: "rules/site/environment.smk"
include: "rules/site/containers.smk"
include: "rules/site/resources.smk"
include: "rules/site/cluster.smk"
include: "rules/site/faults.smk"
include: "rules/stages/demo.smk"
include: "rules/stages/fetch.smk"
include: "rules/stages/data.smk"
include: "rules/stages/train.smk"
include: "rules/stages/merge.smk"
include: "rules/stages/evaluate.smk"
include: "rules/stages/select.smk"
include: "rules/stages/collect.smk"
include: "rules/stages/analyse.smk"
include: "rules/stages/publish.smk"
include: "rules/stages/compare.smk"
include: "rules/stages/report.smk"
include: "rules/stages/verify.smk"
include: "rules/targets.smk"
include: "rules/stages/plan.smk"


rule all:
    default_target: True
    input:
        [PATHS.table(table) for table in TABLES],
        [PATHS.figure(figure) for figure in FIGURES],
        PATHS.tidy("samples"),
        [PATHS.analysis(analysis) for analysis in STUDY.analyses],


include: "rules/site/signatures.smk"
