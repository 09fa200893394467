# What the study, or one target of it, costs: snakemake plan [--config plan_for=table_3]. Nothing of it runs.


rule plan:
    log:
        f"logs/{STUDY.study}/plan.log",
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        configs=[os.path.relpath(file) for file in workflow.configfiles],
        # Through a function: Snakemake would take the braces of a string for wildcards.
        settings=lambda _: [
            f"{key}={json.dumps(value)}"
            for key, value in workflow.config_settings.config.items()
            if key != "plan_for"
        ],
        target=PLAN_FOR,
    shell:
        "python scripts/plan_study.py"
        " --configfile {params.configs:q}"
        " --target {params.target:q}"
        " --config {params.settings:q} 2> {log}"
