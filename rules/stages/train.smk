# One run for all durations of an expert.
from mergetime.workflow.training import durations_json, training_json

if STUDY.experts.recipes:
    sys.exit(
        f"error: {CONFIG}: experts.recipes: one study trains by one recipe so far; "
        "give it as experts.train and experts.durations"
    )

TRAIN = STUDY.experts.train
EXPERT = PATHS.folder(layout.training("{base}", "{domain}", "{seed}"))
EXPERT_FILES = forms.trained_as(TRAIN.mode).files if TRAIN else []


rule train_expert:
    input:
        base=model_json,
        train=f"{RESULTS}/data/{{domain}}/train.parquet",
        validation=f"{RESULTS}/data/{{domain}}/validation.parquet",
    output:
        experts=expand(
            f"{EXPERT}/{{duration}}/{{file}}",
            duration=DURATIONS,
            file=EXPERT_FILES,
            allow_missing=True,
        ),
        curve=f"{EXPERT}/curve.parquet",
        record=f"{EXPERT}/expert.json",
    log:
        f"logs/{STUDY.study}/train_expert/{{base}}/{{domain}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/train_expert/{{base}}/{{domain}}/seed-{{seed}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("train_expert")
    resources:
        **resources_of("train_expert"),
    params:
        base_id=lambda wildcards: STUDY.bases[wildcards.base].model,
        dtype=lambda wildcards: STUDY.bases[wildcards.base].dtype,
        # Through functions: Snakemake would take the braces of a string for wildcards.
        training=lambda _: training_json(TRAIN),
        durations=lambda _: durations_json(STUDY.experts.durations),
        checkpoints=f"{RESULTS}/checkpoints/{{base}}/{{domain}}/seed-{{seed}}",
        code=code_digest("train_expert"),
    shell:
        "python scripts/train_expert.py"
        " --base $(dirname {input.base})"
        " --train {input.train}"
        " --validation {input.validation}"
        " --base-id {params.base_id:q}"
        " --dtype {params.dtype:q}"
        " --training {params.training:q}"
        " --durations {params.durations:q}"
        " --seed {wildcards.seed}"
        " --checkpoints {params.checkpoints:q}"
        " --out $(dirname {output.record}) > {log} 2>&1"
