# The only rules on the network: everything by commit hash, into resources/. All others run with the hub's libraries
# offline (shell.prefix); the scripts here turn them on again for themselves.


rule fetch_model:
    input:
        fetching.hub_inputs(STUDY.hub),
    output:
        layout.fetched(layout.model("{hub_id}", "{revision}")),
    log:
        "logs/fetch_model/{hub_id}/{revision}.log",
    benchmark:
        "benchmarks/fetch_model/{hub_id}/{revision}.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    params:
        hub=fetching.hub_options(STUDY.hub),
        code=code_digest("fetch_model"),
    shell:
        "python scripts/fetch_model.py"
        " --model {wildcards.hub_id:q}"
        " --revision {wildcards.revision}"
        " {params.hub:q}"
        " --out $(dirname {output}) 2> {log}"


rule fetch_dataset:
    input:
        fetching.hub_inputs(STUDY.hub),
    output:
        layout.fetched(layout.dataset("{hub_id}", "{configuration}", "{revision}")),
    log:
        "logs/fetch_dataset/{hub_id}/{configuration}/{revision}.log",
    benchmark:
        "benchmarks/fetch_dataset/{hub_id}/{configuration}/{revision}.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    params:
        hub=fetching.hub_options(STUDY.hub),
        splits=lambda wildcards: fetching.split_options(
            STUDY, wildcards.hub_id, wildcards.configuration, wildcards.revision
        ),
        code=code_digest("fetch_dataset"),
    shell:
        "python scripts/fetch_dataset.py"
        " --dataset {wildcards.hub_id:q}"
        " --revision {wildcards.revision}"
        " --config {wildcards.configuration:q}"
        " {params.splits:q}"
        " {params.hub:q}"
        f" --cache {layout.CACHE}"
        " --out $(dirname {output}) 2> {log}"


# The data of a benchmark is a data set like any other; its rule has a name of its own to be seen apart.
use rule fetch_dataset as fetch_benchmark with:
    output:
        layout.fetched(layout.benchmark("{hub_id}", "{configuration}", "{revision}")),
    log:
        "logs/fetch_benchmark/{hub_id}/{configuration}/{revision}.log",
    benchmark:
        "benchmarks/fetch_benchmark/{hub_id}/{configuration}/{revision}.jsonl"


if STUDY.experts.imported:
    IMPORTED = layout.imported("{base}", "{imported}")

    rule import_expert:
        input:
            fetching.hub_inputs(STUDY.hub),
            base=model_json,
        output:
            [f"{PATHS.folder(IMPORTED)}/{file}" for file in forms.ADAPTER.files],
            record=PATHS.expert_record(IMPORTED),
        log:
            f"logs/{STUDY.study}/import_expert/{{base}}/{{imported}}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/import_expert/{{base}}/{{imported}}.jsonl"
        localrule: True
        conda:
            "../../envs/mergetime.yaml"
        container:
            container_of("train")
        params:
            model=lambda wildcards: STUDY.experts.imported[wildcards.imported].model,
            revision=lambda wildcards: STUDY.experts.imported[
                wildcards.imported
            ].revision,
            base_model=lambda wildcards: STUDY.bases[wildcards.base].model,
            trained_on=lambda wildcards: fetching.trained_on(
                STUDY.experts.imported[wildcards.imported]
            ),
            hub=fetching.hub_options(STUDY.hub),
            code=code_digest("import_expert"),
        shell:
            "python scripts/import_expert.py"
            " --model {params.model:q}"
            " --revision {params.revision:q}"
            " --base $(dirname {input.base})"
            " --base-model {params.base_model:q}"
            " {params.trained_on:q}"
            " {params.hub:q}"
            " --out $(dirname {output.record}) 2> {log}"
