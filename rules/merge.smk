rule merge_experts:
    input:
        base=model_json,
        experts=members_of,
        selection=selection_of,
    output:
        weights=f"{MERGED}/task_vector.safetensors",
        record=f"{MERGED}/merged.json",
    log:
        f"logs/{STUDY.study}/merge_experts/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/merge_experts/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=written_as("delta"),
    conda:
        "../envs/mergetime.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
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
