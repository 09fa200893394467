# What validation decides, recorded as files; nothing here reads a test split.


rule select_hyperparameters:
    input:
        scores=lambda wildcards: selecting.candidate_scores(GRID, **wildcards),
        judged=lambda wildcards: selecting.judged_candidates(GRID, **wildcards),
    output:
        PATHS.selection("{base}", "{pool}", "{method}", "{seed}"),
    log:
        f"logs/{STUDY.study}/select_hyperparameters/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/select_hyperparameters/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=one_of(selecting.choosing(GRID)),
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        candidates=lambda wildcards: selecting.candidates_json(GRID, wildcards.method),
        code=code_digest("select_hyperparameters"),
    shell:
        "python scripts/select_hyperparameters.py"
        " --candidates {params.candidates:q}"
        " --scores {input.scores}"
        " --judged {input.judged}"
        " --out {output} 2> {log}"


rule select_soup:
    input:
        base=model_json,
        experts=members_of,
        scores=lambda wildcards: selecting.member_scores(GRID, *pool_of(wildcards)),
        judged=lambda wildcards: selecting.judged_members(GRID, *pool_of(wildcards)),
        judges=evaluating.judge_models(GRID, "validation"),
        suite=evaluating.suite_files(GRID, "validation"),
    output:
        selection=PATHS.selection("{base}", "{pool}", "{method}", "{seed}"),
        tried=PATHS.selection("{base}", "{pool}", "{method}", "{seed}", "parquet"),
    log:
        f"logs/{STUDY.study}/select_soup/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/select_soup/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=one_of(selecting.soups(GRID)),
    conda:
        "../../envs/mergetime.yaml"
    container:
        EVALUATE_IN
    threads: threads_of("select_soup")
    resources:
        **resources_of("select_soup"),
    params:
        experts=lambda wildcards: selecting.soup_json(GRID, *pool_of(wildcards)),
        space=lambda wildcards: STUDY.methods[wildcards.method].space,
        suite=lambda wildcards: evaluating.suite_json(
            GRID, wildcards.base, "validation"
        ),
        judgements=lambda _: evaluating.judgements_json(GRID, "validation"),
        tasks=lambda _: TASKS["validation"],
        code=lambda wildcards: digests.of_soup(STUDY, wildcards.base),
    shell:
        "python scripts/select_soup.py"
        " --base $(dirname {input.base})"
        " --experts {params.experts:q}"
        " --space {params.space}"
        " --suite {params.suite:q}"
        " --judgements {params.judgements:q}"
        " --tried {output.tried}"
        " --out {output.selection} > {log} 2>&1"
