"""What a study fetches, and what a preparation is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime.config.fields import Strict
from mergetime.config.sections import parse_json
from mergetime.config.sources import Domain, Hub
from mergetime.config.study import Study
from mergetime.workflow import fetching
from mergetime.workflow.preparing import domain_json

ROOT = Path(__file__).parents[2]


def study(name: str, **changed: Any) -> Study:
    return Study.model_validate(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) | changed)


SMOKE = study("smoke")


def test_where_things_are_fetched_to() -> None:
    assert fetching.base_record(SMOKE, "qwen3.5-demo") == (
        "resources/models/mergetime/qwen3.5-demo/161cfa29dda671966e80b82f2d6aab1dc03ff610/fetched.json"
    )
    revision = SMOKE.domains["safety"].revision
    assert fetching.dataset_record(SMOKE, "safety") == (
        f"resources/datasets/mergetime/demo-beavertails/None/{revision}/fetched.json"
    )
    (folder,) = fetching.benchmark_folders(SMOKE, "functions").items()
    assert folder == (
        None,
        f"resources/benchmarks/mergetime/demo-functions/None/{SMOKE.benchmarks['functions'].revision}",
    )


def test_data_that_benchmarks_share_are_fetched_once() -> None:
    both = fetching.benchmark_records(SMOKE, "validation", "test")
    assert len(both) == len(set(both)) == 3
    assert fetching.benchmark_records(SMOKE, "validation")[0] in fetching.benchmark_records(SMOKE, "test")


def test_all_that_a_study_fetches() -> None:
    records = fetching.everything_fetched(SMOKE)
    assert records[0] == fetching.base_record(SMOKE, "qwen3.5-demo")
    assert {fetching.dataset_record(SMOKE, domain) for domain in SMOKE.domains} < set(records)
    assert records[-1] == "results/smoke/experts/qwen3.5-demo/imported/polite/expert.json"
    paper = study("paper")
    judge = paper.judges["wildguard"]
    assert f"resources/models/{judge.model}/{judge.revision}/fetched.json" in fetching.everything_fetched(paper)


@pytest.mark.parametrize(
    ("hub", "options", "inputs"),
    [
        (Hub(), ["--endpoint", "https://huggingface.co"], []),
        (Hub(folder="/data/my-hub"), ["--endpoint", "https://huggingface.co", "--hub-folder", "/data/my-hub"], []),
        (
            Hub(folder="resources/demo/hub"),
            ["--endpoint", "https://huggingface.co", "--hub-folder", "resources/demo/hub"],
            ["resources/demo/hub.json"],
        ),
    ],
)
def test_a_hub(hub: Hub, options: list[str], inputs: list[str]) -> None:
    assert fetching.hub_options(hub) == options
    assert fetching.hub_inputs(hub) == inputs


def test_the_splits_that_are_asked_of_a_data_set() -> None:
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    aya = data["domains"]["multilingual"]
    data["domains"] |= {"more": aya | {"split": "test"}, "other": aya | {"config": "german", "split": "rare"}}
    splits = Study.model_validate(data)
    given = (aya["dataset"], "None", aya["revision"])
    assert fetching.split_options(splits, *given) == ["--split", "test", "--split", "train"]
    assert fetching.split_options(splits, aya["dataset"], "german", aya["revision"]) == ["--split", "rare"]
    assert fetching.split_options(splits, aya["dataset"], "None", "0" * 40) == []


def test_the_script_reads_the_domain_that_the_rule_wrote() -> None:
    for domain in study("paper").domains.values():
        assert parse_json(Domain, domain_json(domain), "--domain") == domain


def test_a_new_key_prepares_no_domain_again() -> None:
    class WithMore(Domain):
        modality: str | None = None

    given = SMOKE.domains["safety"].model_dump()
    assert isinstance(WithMore(**given), Strict)
    assert domain_json(WithMore(**given)) == domain_json(Domain(**given))
    assert json.loads(domain_json(WithMore(**given)))["split"] == "train", "a default that is at work is told"
