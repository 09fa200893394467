rule prepare_domain:
    input:
        dataset=lambda wildcards: dataset_json(wildcards.domain),
        tokenizer=f"{model_folder(next(iter(STUDY.bases)))}/fetched.json",
        benchmarks=sorted({file for split in SPLITS for file in benchmark_json(split)}),
    output:
        f"{RESULTS}/data/{{domain}}/train.parquet",
        f"{RESULTS}/data/{{domain}}/validation.parquet",
        record=f"{RESULTS}/data/{{domain}}/domain.json",
    log:
        f"logs/{STUDY.study}/prepare_domain/{{domain}}.log",
    benchmark:
        f"benchmarks/{STUDY.study}/prepare_domain/{{domain}}.jsonl"
    conda:
        "../../envs/mergetime.yaml"
    container:
        container_of("train")
    threads: threads_of("prepare_domain")
    resources:
        **resources_of("prepare_domain"),
    params:
        domain=lambda wildcards: STUDY.domains[wildcards.domain],
        seed=STUDY.data_seed,
        benchmarks=lambda _, input: [
            f"--benchmark {Path(file).parent}" for file in input.benchmarks
        ],
        code=lambda wildcards: digests.of_preparation(STUDY, wildcards.domain),
    shell:
        "python scripts/prepare_domain.py"
        " --dataset $(dirname {input.dataset})"
        " --split {params.domain.split}"
        " --format {params.domain.format}"
        " --tokenizer $(dirname {input.tokenizer})"
        " {params.benchmarks}"
        " --train {params.domain.train}"
        " --validation {params.domain.validation}"
        " --max-tokens {params.domain.max_tokens}"
        " --seed {params.seed}"
        " --out $(dirname {output.record}) 2> {log}"
