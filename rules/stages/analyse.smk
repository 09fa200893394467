# What experts say of each other, and how merged models relate to them: in `all` where the config's analyses list it.
include: "../pools.smk"


rule measure_interference:
    input:
        base=model_json,
        experts=members_of,
    output:
        metrics=f"{measured('interference')}.parquet",
        tensors=f"{measured('interference')}.tensors.parquet",
        record=f"{measured('interference')}.json",
    log:
        f"logs/{STUDY.study}/measure_interference/{{base}}/{{pool}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_interference/{{base}}/{{pool}}/seed-{{seed}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("measure_interference")
    resources:
        **resources_of("measure_interference"),
    params:
        experts=expert_options,
        code=code_digest("measure_interference"),
    shell:
        "python scripts/measure_interference.py"
        " --base $(dirname {input.base})"
        " {params.experts}"
        " --threads {threads}"
        " --out {output.metrics} 2> {log}"


rule measure_bias_variance:
    input:
        base=model_json,
        experts=members_of,
        merged=[merged_weights(merge_id) for merge_id in FINAL],
        data=VALIDATION,
    output:
        probabilities=f"{measured('bias_variance')}.parquet",
        record=f"{measured('bias_variance')}.json",
    log:
        f"logs/{STUDY.study}/measure_bias_variance/{{base}}/{{pool}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_bias_variance/{{base}}/{{pool}}/seed-{{seed}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("measure_bias_variance")
    resources:
        **resources_of("measure_bias_variance"),
    params:
        experts=expert_options,
        merged=merged_options,
        data=expand(
            "--data {domain}={file}", zip, domain=STUDY.domains, file=VALIDATION
        ),
        examples=STUDY.bias_variance.examples,
        batch=BATCH,
        code=code_digest("measure_bias_variance"),
    shell:
        "python scripts/measure_bias_variance.py"
        " --base $(dirname {input.base})"
        " {params.experts}"
        " {params.merged}"
        " {params.data}"
        " --examples {params.examples}"
        " {params.batch}"
        " --out {output.probabilities} > {log} 2>&1"


rule measure_connectivity:
    input:
        base=model_json,
        experts=members_of,
        data=lambda wildcards: list(path_data(wildcards).values()),
    output:
        losses=f"{measured('mode_connectivity')}.parquet",
        record=f"{measured('mode_connectivity')}.json",
    log:
        f"logs/{STUDY.study}/measure_connectivity/{{base}}/{{pool}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/measure_connectivity/{{base}}/{{pool}}/seed-{{seed}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("measure_connectivity")
    resources:
        **resources_of("measure_connectivity"),
    params:
        options=path_options,
        batch=BATCH,
        code=code_digest("measure_connectivity"),
    shell:
        "python scripts/measure_connectivity.py"
        " --base $(dirname {input.base})"
        " {params.options}"
        " {params.batch}"
        " --out {output.losses} > {log} 2>&1"


rule collect_interference:
    input:
        study=f"{RESULTS}/study.json",
        pools=measurements("interference"),
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
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        analysis="interference",
        code=code_digest("collect_analysis"),
    shell:
        "python scripts/collect_analysis.py"
        " --study {input.study}"
        " --analysis {params.analysis}"
        f" --out {RESULTS} 2> {{log}}"


use rule collect_interference as collect_bias_variance with:
    input:
        study=f"{RESULTS}/study.json",
        pools=measurements("bias_variance"),
    output:
        terms=f"{RESULTS}/analysis/bias_variance.parquet",
        record=f"{RESULTS}/analysis/bias_variance.json",
    log:
        f"logs/{STUDY.study}/collect_bias_variance.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_bias_variance.jsonl"
    params:
        analysis="bias_variance",
        code=code_digest("collect_analysis"),


use rule collect_interference as collect_mode_connectivity with:
    input:
        study=f"{RESULTS}/study.json",
        pools=measurements("mode_connectivity"),
    output:
        paths=f"{RESULTS}/analysis/mode_connectivity.parquet",
        barriers=f"{RESULTS}/analysis/barriers.parquet",
        record=f"{RESULTS}/analysis/mode_connectivity.json",
    log:
        f"logs/{STUDY.study}/collect_mode_connectivity.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_mode_connectivity.jsonl"
    params:
        analysis="mode_connectivity",
        code=code_digest("collect_analysis"),
