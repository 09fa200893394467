# One run for all durations of an expert; a rule for each recipe.
from mergetime.workflow import training

for run in training.rules(GRID):

    rule:
        name:
            run.name
        input:
            base=model_json,
            train=PATHS.data("{domain}", "train"),
            validation=PATHS.data("{domain}", "validation"),
        output:
            experts=run.experts,
            curve=PATHS.curve(run.training),
            record=PATHS.expert_record(run.training),
        log:
            f"logs/{STUDY.study}/train_expert/{run.below}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/train_expert/{run.below}.jsonl"
        conda:
            "../../envs/mergetime.yaml"
        container:
            container_of("train")
        threads: threads_of("train_expert")
        resources:
            **resources_of("train_expert"),
        params:
            of_base=lambda wildcards: training.base_options(GRID, wildcards.base),
            # Through a function: Snakemake would take the braces of a string for wildcards.
            recipe=lambda _, run=run: run.recipe,
            checkpoints=PATHS.checkpoints(run.training),
            code=lambda wildcards: digests.on_base(
                STUDY, wildcards.base, "train_expert"
            ),
        shell:
            "python scripts/train_expert.py"
            " --base $(dirname {input.base})"
            " {params.of_base:q}"
            " --train {input.train}"
            " --validation {input.validation}"
            " --recipe {params.recipe:q}"
            " --seed {wildcards.seed}"
            " --checkpoints {params.checkpoints:q}"
            " --out $(dirname {output.record}) > {log} 2>&1"
