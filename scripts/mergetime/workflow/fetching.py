"""What a study fetches from its hub: where to, with which options, and what has to be there.

Imported while Snakemake parses the workflow: nothing heavy is imported here.
"""

from mergetime.config.experts import Imported
from mergetime.config.sources import Hub
from mergetime.config.study import Study
from mergetime.study import layout
from mergetime.study.suites import benchmarks_of, groups

_MADE_HERE = (layout.DEMO_HUB, layout.REHEARSAL_HUB)


def hub_options(hub: Hub) -> list[str]:
    """Where to fetch from, as options of the scripts that fetch."""
    return ["--endpoint", hub.endpoint, *(["--hub-folder", hub.folder] if hub.folder else [])]


def trained_on(expert: Imported) -> list[str]:
    """What an imported adapter calls its base, where the config declares that, as an option of import_expert.py."""
    return ["--trained-on", expert.trained_on] if expert.trained_on else []


def hub_inputs(hub: Hub) -> list[str]:
    """What has to be there before anything is fetched: the record of a folder hub that this workflow makes itself."""
    return [f"{hub.folder}.json"] if hub.folder in _MADE_HERE else []


def base_folder(study: Study, base: str) -> str:
    """The folder of a fetched base."""
    source = study.bases[base]
    return layout.model(source.model, source.revision)


def base_record(study: Study, base: str) -> str:
    """The record of a fetched base, an input of all that loads it."""
    return layout.fetched(base_folder(study, base))


def dataset_record(study: Study, domain: str) -> str:
    """The record of a domain's fetched training set."""
    source = study.domains[domain]
    return layout.fetched(layout.dataset(source.dataset, source.config, source.revision))


def benchmark_folders(study: Study, name: str) -> dict[str | None, str]:
    """Where the data of a benchmark is fetched to, by configuration of the data set."""
    source = study.benchmarks[name]
    return {config: layout.benchmark(source.dataset, config, source.revision) for config in source.configs}


def benchmark_records(study: Study, *splits: str) -> list[str]:
    """The records of the fetched data of these splits' benchmarks, each once."""
    return [
        layout.fetched(folder)
        for folder in dict.fromkeys(
            folder
            for split in splits
            for _, name in benchmarks_of(study, split)
            for folder in benchmark_folders(study, name).values()
        )
    ]


def split_options(study: Study, dataset: str, configuration: str, revision: str) -> list[str]:
    """The splits that examples are drawn from, as options of fetch_dataset.py.

    So a wrong name is found where the network is.
    """
    splits = {
        domain.split
        for domain in study.domains.values()
        if (domain.dataset, str(domain.config), domain.revision) == (dataset, configuration, revision)
    }
    return [part for split in sorted(splits) for part in ("--split", split)]


def everything_fetched(study: Study) -> list[str]:
    """The records of all that a study fetches, for a machine with a network to prepare one without."""
    paths = layout.of(study)
    return [
        *(base_record(study, base) for base in study.bases),
        *(layout.fetched(layout.model(judge.model, judge.revision)) for judge in study.judges.values()),
        *(dataset_record(study, domain) for domain in study.domains),
        *(record for record in benchmark_records(study, *groups(study))),
        *(
            paths.expert_record(layout.imported(imported.base, name))
            for name, imported in study.experts.imported.items()
        ),
    ]
