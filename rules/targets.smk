# What people ask for by name; without a name: all, in the Snakefile.
rule tables:
    input:
        [PATHS.table(table) for table in TABLES],


rule report:
    input:
        PATHS.report(),


rule claims:
    input:
        PATHS.claims("md"),


rule package:
    input:
        PATHS.package("checksums.sha256"),


rule interference:
    input:
        PATHS.analysis("interference"),


rule bias_variance:
    input:
        PATHS.analysis("bias_variance"),


rule mode_connectivity:
    input:
        PATHS.analysis("mode_connectivity"),
        PATHS.analysis("barriers"),


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
            PATHS.table(table),


for figure in PAPER.figures:

    rule:
        name:
            figure
        input:
            PATHS.figure(figure),


# And those of other papers, likewise.
for name, reason in publishing.elsewhere(STUDY).items():

    rule:
        name:
            name
        input:
            lambda _, reason=reason: publishing.stop(reason),
