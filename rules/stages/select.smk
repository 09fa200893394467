# What validation decides, recorded as files; nothing here reads a test split.


rule select_hyperparameters:
    input:
        scores=candidates_of,
        judged=lambda wildcards: judged_of(candidates_of(wildcards)),
    output:
        SELECTION,
    log:
        f"logs/{STUDY.study}/select_hyperparameters/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/select_hyperparameters/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=one_of(name for name, method in STUDY.methods.items() if method.choose),
    localrule: True
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("publish")
    params:
        candidates=lambda wildcards: [
            json.dumps(candidate)
            for candidate in grid.candidates(STUDY.methods[wildcards.method])
        ],
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
        scores=experts_of,
        judged=lambda wildcards: judged_of(experts_of(wildcards)),
        judges=judge_models("validation"),
        suite=suite_data("validation"),
    output:
        selection=SELECTION,
        tried=f"{RESULTS}/selections/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.parquet",
    log:
        f"logs/{STUDY.study}/select_soup/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/select_soup/{{base}}/{{pool}}/{{method}}/seed-{{seed}}.jsonl"
    wildcard_constraints:
        method=one_of(
            name
            for name, method in STUDY.methods.items()
            if method.method == "greedy_soup"
        ),
    conda:
        "../../envs/mergetime.yaml"
    container:
        EVALUATE_IN
    threads: threads_of("select_soup")
    resources:
        **resources_of("select_soup"),
    params:
        members=lambda wildcards, input: [
            f"--expert {name}={Path(weights).parent}:{scores}"
            for name, weights, scores in zip(
                POOLS[wildcards.pool].members, input.experts, input.scores, strict=True
            )
        ],
        space=lambda wildcards: STUDY.methods[wildcards.method].space,
        suite=lambda _: suite_options("validation"),
        judges=soup_judge_options,
        tasks=TASKS,
        code=digests.of_soup(),
    shell:
        "python scripts/select_soup.py"
        " --base $(dirname {input.base})"
        " {params.members}"
        " --space {params.space}"
        " {params.suite}"
        " {params.judges}"
        " --tried {output.tried}"
        " --out {output.selection} > {log} 2>&1"
