# What experts say of each other before anything is merged or evaluated: in `all` where the config's analyses list it.
INTERFERENCE = f"{RESULTS}/analysis/interference/{{base}}/{{pool}}/seed-{{seed}}"


rule measure_interference:
    input:
        base=model_json,
        experts=members_of,
    output:
        metrics=f"{INTERFERENCE}.parquet",
        tensors=f"{INTERFERENCE}.tensors.parquet",
        record=f"{INTERFERENCE}.json",
    log:
        f"logs/{STUDY.study}/measure_interference/{{base}}/{{pool}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_interference/{{base}}/{{pool}}/seed-{{seed}}.jsonl"
    conda:
        "../envs/mergetime.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        experts=lambda wildcards: [
            f"--expert {name}={Path(file).parent}"
            for name, file in expert_weights(
                wildcards.pool, wildcards.base, wildcards.seed
            ).items()
        ],
        code=code_digest("measure_interference"),
    shell:
        "python scripts/measure_interference.py"
        " --base $(dirname {input.base})"
        " {params.experts}"
        " --threads {threads}"
        " --out {output.metrics} 2> {log}"


rule collect_interference:
    input:
        study=f"{RESULTS}/study.json",
        pools=[
            INTERFERENCE.format(base=base, pool=pool.id, seed=seed) + ".parquet"
            for base in STUDY.bases
            for pool in grid.pools_on(STUDY, base)
            for seed in SEEDS
            if len(pool.experts) > 1
        ],
    output:
        metrics=f"{RESULTS}/analysis/interference.parquet",
        tensors=f"{RESULTS}/analysis/interference.tensors.parquet",
        record=f"{RESULTS}/analysis/interference.json",
    log:
        f"logs/{STUDY.study}/collect_interference.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_interference.jsonl"
    localrule: True
    conda:
        "../envs/mergetime.yaml"
    params:
        code=code_digest("collect_interference"),
    shell:
        "python scripts/collect_interference.py"
        " --study {input.study}"
        f" --out {RESULTS} 2> {{log}}"
