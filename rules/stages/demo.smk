# What stands in for a hub is made here, not downloaded: the demo's from seeds and CLDR, its base by pre-training.


rule make_demo_hub:
    input:
        base=f"config/demo_base/{forms.CHECKPOINT.weights}",
        adapter=f"config/demo_adapter/{forms.ADAPTER.weights}",
    output:
        f"{layout.DEMO_HUB}.json",
    log:
        "logs/make_demo_hub.log",
    benchmark:
        "benchmarks/make_demo_hub.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    params:
        code=code_digest("make_demo_hub"),
    shell:
        "python scripts/make_demo_hub.py"
        " --base $(dirname {input.base})"
        " --adapter $(dirname {input.adapter})"
        " --folder $(dirname {output})/hub"
        " --out {output} 2> {log}"


# A hub with the repositories of a study at full size, at its commits, but with tiny models and few rows.
rule make_rehearsal_hub:
    input:
        study=PATHS.study,
        base=f"config/demo_base/{forms.CHECKPOINT.weights}",
    output:
        f"{layout.REHEARSAL_HUB}.json",
    log:
        "logs/make_rehearsal_hub.log",
    benchmark:
        "benchmarks/make_rehearsal_hub.jsonl"
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    params:
        code=code_digest("make_rehearsal_hub"),
    shell:
        "python scripts/make_rehearsal_hub.py"
        " --study {input.study}"
        " --base $(dirname {input.base})"
        " --folder $(dirname {output})/hub"
        " --out {output} 2> {log}"


rule pretrain_demo_base:
    output:
        weights=f"{layout.DEMO_BASE}/{forms.CHECKPOINT.weights}",
    log:
        "logs/pretrain_demo_base.log",
    benchmark:
        "benchmarks/pretrain_demo_base.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("pretrain_demo_base")
    resources:
        **resources_of("pretrain_demo_base"),
    params:
        code=code_digest("pretrain_demo_base"),
    shell:
        "python scripts/pretrain_demo_base.py"
        " --out $(dirname {output.weights}) 2> {log}"
