# Methods that need data: what an expert's own training data say of its weights.
rule measure_expert:
    input:
        base=model_json,
        expert=f"{RESULTS}/experts/{{base}}/{{expert}}/adapter_model.safetensors",
        data=training_data_of,
    output:
        statistic=f"{RESULTS}/statistics/{{base}}/{{expert}}/{{kind}}.safetensors",
        record=f"{RESULTS}/statistics/{{base}}/{{expert}}/{{kind}}.json",
    log:
        f"logs/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_expert/{{base}}/{{expert}}/{{kind}}.jsonl"
    wildcard_constraints:
        expert="[^/]+/seed-[0-9]+/[^/]+|imported/[^/]+",
        kind="fisher|gram|mask",
    conda:
        "../envs/mergetime.yaml"
    threads: threads_of("measure_expert")
    resources:
        **resources_of("measure_expert"),
    params:
        options=measure_options,
        seed=STUDY.data_seed,
        code=code_digest("measure_expert"),
    shell:
        "python scripts/measure_expert.py"
        " --base $(dirname {input.base})"
        " --expert $(dirname {input.expert})"
        " --data {input.data}"
        " --kind {wildcards.kind}"
        " {params.options}"
        " --seed {params.seed}"
        " --out $(dirname {output.record}) > {log} 2>&1"


rule merge_experts:
    input:
        base=model_json,
        experts=members_of,
        selection=selection_of,
        statistics=lambda wildcards: list(statistics_of(wildcards).values()),
    output:
        weights=kept_or_temp(f"{MERGED}/task_vector.safetensors"),
        record=f"{MERGED}/merged.json",
    log:
        f"logs/{STUDY.study}/merge_experts/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/merge_experts/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=written_as("delta"),
    conda:
        "../envs/mergetime.yaml"
    threads: threads_of("merge_experts")
    resources:
        **resources_of("merge_experts"),
    params:
        options=merge_options,
        code=code_digest("merge_experts"),
    shell:
        "python scripts/merge_experts.py"
        " --base $(dirname {input.base})"
        " {params.options}"
        " --seed {wildcards.seed}"
        " --threads {threads}"
        " --out $(dirname {output.record}) > {log} 2>&1"


use rule merge_experts as merge_adapters with:
    output:
        weights=f"{MERGED}/adapter_model.safetensors",
        config=f"{MERGED}/adapter_config.json",
        record=f"{MERGED}/merged.json",
    wildcard_constraints:
        method=written_as("adapter"),
