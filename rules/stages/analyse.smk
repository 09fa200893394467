# What experts say of each other, and how merged models relate to them: in `all` where the config's analyses list it.


rule measure_interference:
    input:
        base=model_json,
        experts=members_of,
    output:
        metrics=analysing.measured(GRID, "interference"),
        tensors=analysing.measured(GRID, "interference", "tensors.parquet"),
        record=analysing.measured(GRID, "interference", "json"),
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
        experts=lambda wildcards: merging.expert_options(GRID, *pool_of(wildcards)),
        code=code_digest("measure_interference"),
    shell:
        "python scripts/measure_interference.py"
        " --base $(dirname {input.base})"
        " {params.experts:q}"
        " --threads {threads}"
        " --out {output.metrics} 2> {log}"


rule measure_bias_variance:
    input:
        base=model_json,
        experts=members_of,
        merged=lambda wildcards: analysing.merged(GRID, *pool_of(wildcards)),
        data=list(analysing.validation_data(GRID).values()),
    output:
        probabilities=analysing.measured(GRID, "bias_variance"),
        record=analysing.measured(GRID, "bias_variance", "json"),
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
        experts=lambda wildcards: merging.expert_options(GRID, *pool_of(wildcards)),
        merged=lambda wildcards: analysing.merged_options(GRID, *pool_of(wildcards)),
        data=analysing.data_options(analysing.validation_data(GRID)),
        examples=STUDY.bias_variance.examples,
        models=lambda wildcards: analysing.model_options(GRID, wildcards.base),
        code=lambda wildcards: digests.on_base(
            STUDY, wildcards.base, "measure_bias_variance"
        ),
    shell:
        "python scripts/measure_bias_variance.py"
        " --base $(dirname {input.base})"
        " {params.experts:q}"
        " {params.merged:q}"
        " {params.data:q}"
        " --examples {params.examples}"
        " {params.models:q}"
        " --out {output.probabilities} > {log} 2>&1"


rule measure_connectivity:
    input:
        base=model_json,
        experts=members_of,
        data=lambda wildcards: list(analysing.path_data(GRID, wildcards.pool).values()),
    output:
        losses=analysing.measured(GRID, "mode_connectivity"),
        record=analysing.measured(GRID, "mode_connectivity", "json"),
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
        options=lambda wildcards: analysing.path_options(GRID, *pool_of(wildcards)),
        models=lambda wildcards: analysing.model_options(GRID, wildcards.base),
        code=lambda wildcards: digests.on_base(
            STUDY, wildcards.base, "measure_connectivity"
        ),
    shell:
        "python scripts/measure_connectivity.py"
        " --base $(dirname {input.base})"
        " {params.options:q}"
        " {params.models:q}"
        " --out {output.losses} > {log} 2>&1"


rule collect_interference:
    input:
        study=PATHS.study,
        pools=analysing.measurements(GRID, "interference"),
    output:
        metrics=PATHS.analysis("interference"),
        tensors=PATHS.analysis("interference", "tensors.parquet"),
        record=PATHS.analysis("interference", "json"),
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
        f" --out {PATHS.root} 2> {{log}}"


use rule collect_interference as collect_bias_variance with:
    input:
        study=PATHS.study,
        pools=analysing.measurements(GRID, "bias_variance"),
    output:
        terms=PATHS.analysis("bias_variance"),
        record=PATHS.analysis("bias_variance", "json"),
    log:
        f"logs/{STUDY.study}/collect_bias_variance.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_bias_variance.jsonl"
    params:
        analysis="bias_variance",
        code=code_digest("collect_analysis"),


use rule collect_interference as collect_mode_connectivity with:
    input:
        study=PATHS.study,
        pools=analysing.measurements(GRID, "mode_connectivity"),
    output:
        paths=PATHS.analysis("mode_connectivity"),
        barriers=PATHS.analysis("barriers"),
        record=PATHS.analysis("mode_connectivity", "json"),
    log:
        f"logs/{STUDY.study}/collect_mode_connectivity.log",
    benchmark:
        f"benchmarks/{STUDY.study}/collect_mode_connectivity.jsonl"
    params:
        analysis="mode_connectivity",
        code=code_digest("collect_analysis"),
