# Whether the files of a study, and of what it fetched, are still those that were written: snakemake verify.


rule verify:
    log:
        f"logs/{STUDY.study}/verify.log",
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        fetched=fetching.everything_fetched(STUDY),
        published=publishing.published(STUDY),
        dense="" if STUDY.keep_dense_merges else "--dense-may-be-missing",
        configs=[os.path.relpath(file) for file in workflow.configfiles],
        # Through a function: Snakemake would take the braces of a string for wildcards.
        settings=lambda _: [
            f"{key}={json.dumps(value)}"
            for key, value in workflow.config_settings.config.items()
            if key != "plan_for"
        ],
    shell:
        "python scripts/verify_artifacts.py"
        f" --study {PATHS.root}"
        " --fetched {params.fetched:q}"
        " --published {params.published:q}"
        " {params.dense:q}"
        " --configfile {params.configs:q}"
        " --config {params.settings:q} 2> {log}"
