# A job takes several subjects: the durations of an expert, or the merges of a pool. Each batch of them has a rule.
EVALUATE = (
    "python scripts/evaluate.py"
    " --base $(dirname {input.base})"
    " --suite {params.suite:q}"
    " --subjects {params.subjects:q}"
    " {params.members:q} > {log} 2>&1"
)


rule evaluate_base:
    input:
        base=model_json,
        suite=suite_of,
    output:
        evaluating.evaluation_files(GRID, [layout.base("{base}")], "{split}"),
    log:
        f"logs/{STUDY.study}/evaluate_base/{{base}}/{{split}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/evaluate_base/{{base}}/{{split}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        EVALUATE_IN
    threads: threads_of("evaluate")
    resources:
        **resources_of("evaluate"),
    params:
        suite=suite_json,
        subjects=subjects_json([layout.base("{base}")]),
        members=[],
        tasks=tasks_of,
        code=lambda wildcards: digests.on_base(STUDY, wildcards.base, "evaluate"),
    shell:
        EVALUATE


if STUDY.experts.imported:

    use rule evaluate_base as evaluate_imported with:
        input:
            base=model_json,
            weights=f"{PATHS.folder(layout.imported('{base}', '{imported}'))}/{forms.ADAPTER.weights}",
            suite=suite_of,
        output:
            evaluating.evaluation_files(
                GRID, [layout.imported("{base}", "{imported}")], "{split}"
            ),
        log:
            f"logs/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/evaluate_imported/{{base}}/{{imported}}/{{split}}.jsonl"
        params:
            suite=suite_json,
            subjects=subjects_json([layout.imported("{base}", "{imported}")]),
            members=[],
            tasks=tasks_of,
            code=lambda wildcards: digests.on_base(STUDY, wildcards.base, "evaluate"),


for jobs in batching.expert_batches(GRID):

    rule:
        name:
            jobs.evaluate_rule
        input:
            base=model_json,
            weights=[
                f"{PATHS.folder(subject)}/{jobs.weights}" for subject in jobs.subjects
            ],
            suite=suite_of,
        output:
            evaluating.evaluation_files(GRID, jobs.subjects, "{split}"),
        log:
            f"logs/{STUDY.study}/evaluate_expert/{{base}}/{{domain}}/seed-{{seed}}/{{split}}-{jobs.number}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/evaluate_expert/{{base}}/{{domain}}/seed-{{seed}}/{{split}}-{jobs.number}.jsonl"
        conda:
            "../../envs/mergetime.yaml"
        container:
            EVALUATE_IN
        threads: threads_of("evaluate")
        resources:
            **resources_of("evaluate", len(jobs.members)),
        params:
            suite=suite_json,
            subjects=subjects_json(jobs.subjects),
            members=[],
            tasks=tasks_of,
            code=lambda wildcards: digests.on_base(STUDY, wildcards.base, "evaluate"),
        shell:
            EVALUATE


for jobs in MERGE_BATCHES:

    rule:
        name:
            jobs.evaluate_rule
        input:
            base=model_json,
            weights=made_by(
                jobs.merge_rule,
                merging.all_weights(GRID, jobs.members, jobs.pools[0]),
            ),
            experts=members_of,
            suite=lambda wildcards, split=jobs.split: evaluating.suite_files(
                GRID, split.format(**wildcards)
            ),
        output:
            evaluating.evaluation_files(GRID, jobs.subjects, jobs.split),
        log:
            f"logs/{STUDY.study}/{jobs.evaluate}/{{base}}/{{pool}}/seed-{{seed}}/{jobs.split}-{jobs.number}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/{jobs.evaluate}/{{base}}/{{pool}}/seed-{{seed}}/{jobs.split}-{jobs.number}.jsonl"
        wildcard_constraints:
            pool=one_of(jobs.pools),
            split=one_of(jobs.splits),
        conda:
            "../../envs/mergetime.yaml"
        container:
            EVALUATE_IN
        threads: threads_of("evaluate")
        resources:
            **resources_of("evaluate", len(jobs.members)),
        params:
            suite=lambda wildcards, split=jobs.split: evaluating.suite_json(
                GRID, wildcards.base, split.format(**wildcards)
            ),
            subjects=subjects_json(jobs.subjects, jobs.split),
            members=lambda wildcards: merging.expert_options(
                GRID, *pool_of(wildcards), "--member"
            ),
            tasks=lambda wildcards, split=jobs.split: (TASKS[split.format(**wildcards)]),
            code=lambda wildcards: digests.on_base(STUDY, wildcards.base, "evaluate"),
        shell:
            EVALUATE


# Judges read saved responses: another judge evaluates nothing again. The batches are those of the evaluations.
for jobs in batching.judge_batches(GRID, JUDGED):

    rule:
        name:
            jobs.rule
        input:
            judges=lambda wildcards, split=jobs.split: evaluating.judge_models(
                GRID, split.format(**wildcards)
            ),
            responses=made_by(
                jobs.evaluated_by,
                evaluating.responses(GRID, jobs.subjects, jobs.split),
            ),
        output:
            evaluating.judged_files(GRID, jobs.subjects, jobs.split),
        log:
            f"logs/{STUDY.study}/{jobs.rule}/{jobs.subjects[0]}/{jobs.split}.log",
        benchmark:
            f"benchmarks/{STUDY.study}/{jobs.rule}/{jobs.subjects[0]}/{jobs.split}.jsonl"
        wildcard_constraints:
            pool=one_of(jobs.pools),
            split=one_of(jobs.splits),
        conda:
            "../../envs/mergetime.yaml"
        container:
            EVALUATE_IN
        threads: threads_of("judge_responses")
        resources:
            **resources_of("judge_responses", len(jobs.subjects)),
        params:
            split=lambda wildcards, split=jobs.split: split.format(**wildcards),
            judgements=lambda wildcards, split=jobs.split: (
                evaluating.judgements_json(GRID, split.format(**wildcards))
            ),
            subjects=lambda wildcards, jobs=jobs: evaluating.judged_subjects_json(
                GRID,
                [subject.format(**wildcards) for subject in jobs.subjects],
                jobs.split.format(**wildcards),
            ),
            code=digests.of_judgements(),
        shell:
            "python scripts/judge_responses.py"
            " --split {params.split}"
            " --judgements {params.judgements:q}"
            " --subjects {params.subjects:q} > {log} 2>&1"
