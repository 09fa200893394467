from mergetime.modalities import parts
from mergetime.workflow.preparing import domain_json


rule prepare_domain:
    input:
        dataset=lambda wildcards: fetching.dataset_record(STUDY, wildcards.domain),
        tokenizer=fetching.base_record(STUDY, next(iter(STUDY.bases))),
        benchmarks=sorted(benchmark_json(*SPLITS)),
    output:
        PATHS.data("{domain}", "train"),
        PATHS.data("{domain}", "validation"),
        record=PATHS.data_record("{domain}"),
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
        domain=lambda wildcards: domain_json(STUDY.domains[wildcards.domain]),
        seed=STUDY.data_seed,
        benchmarks=[str(Path(file).parent) for file in sorted(benchmark_json(*SPLITS))],
        modality=parts.options(next(iter(STUDY.bases.values())).modality),
        code=lambda wildcards: digests.of_preparation(STUDY, wildcards.domain),
    shell:
        "python scripts/prepare_domain.py"
        " --dataset $(dirname {input.dataset})"
        " --domain {params.domain:q}"
        " --tokenizer $(dirname {input.tokenizer})"
        " --benchmarks {params.benchmarks:q}"
        " --seed {params.seed:q}"
        " {params.modality:q}"
        " --out $(dirname {output.record}) 2> {log}"
