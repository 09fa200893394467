

rule train_expert:
    input:
        base=model_json,
        train=f"{RESULTS}/data/{{domain}}/train.parquet",
        validation=f"{RESULTS}/data/{{domain}}/validation.parquet",
    output:
        adapters=expand(
            f"{EXPERT}/{{duration}}/{{file}}",
            duration=DURATIONS,
            file=["adapter_model.safetensors", "adapter_config.json"],
            allow_missing=True,
        ),
        curve=f"{EXPERT}/curve.parquet",
        record=f"{EXPERT}/expert.json",
    log:
        f"logs/{STUDY.study}/train_expert/{{base}}/{{domain}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/train_expert/{{base}}/{{domain}}/seed-{{seed}}.jsonl"
    conda:
        "../envs/mergetime.yaml"
    resources:
        mem_mb=8000,
        runtime=1440,
    params:
        options=training_options,
        checkpoints=f"{RESULTS}/checkpoints/{{base}}/{{domain}}/seed-{{seed}}",
        code=code_digest("train_expert"),
    shell:
        "python scripts/train_expert.py"
        " --base $(dirname {input.base})"
        " --train {input.train}"
        " --validation {input.validation}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " --checkpoints {params.checkpoints}"
        " --out $(dirname {output.record}) > {log} 2>&1"
