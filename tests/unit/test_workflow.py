"""What the rules ask of the package: inputs, options and batches of jobs, on the repository's studies."""

import json
from pathlib import Path
from typing import Any

import pytest

from mergetime import config
from mergetime.config import Study
from mergetime.core.options import parsed
from mergetime.evaluation.judging import Judgement
from mergetime.evaluation.suite import SuiteOptions
from mergetime.merging.jobs import Merge
from mergetime.workflow import analysing, batching, collecting, evaluating, merging, selecting
from mergetime.workflow.grid import Grid

ROOT = Path(__file__).parents[2]
BASE = "qwen3.5-demo"
FOLDER = "results/smoke"


def changed(study: Study, **sections: Any) -> Grid:
    """The grid of the study with other sections."""
    return Grid.of(config.parse(study.model_dump() | sections, "c.yaml"))


@pytest.fixture(scope="module")
def smoke() -> Grid:
    return Grid.of(config.load(ROOT / "config/smoke.yaml"))


@pytest.fixture(scope="module")
def paper() -> Grid:
    return Grid.of(config.load(ROOT / "config/paper.yaml"))


def soup_of(grid: Grid) -> str:
    (soup,) = selecting.soups(grid)
    return soup


# Merging


def test_members_are_trained_and_imported_experts(smoke: Grid) -> None:
    assert merging.member_weights(smoke, BASE, "with_imported", "1") == {
        "safety": f"{FOLDER}/experts/{BASE}/safety/seed-1/1x/adapter_model.safetensors",
        "polite": f"{FOLDER}/experts/{BASE}/imported/polite/adapter_model.safetensors",
    }
    told = merging.expert_options(smoke, BASE, "with_imported", "1", "--member")
    assert told[1] == f"--member=polite={FOLDER}/experts/{BASE}/imported/polite"


def test_whole_models_are_merged_into_task_vectors(smoke: Grid) -> None:
    study = smoke.study
    assert study.experts.train
    adapters = {name: m for name, m in study.model_dump()["methods"].items() if m["space"] != "adapter"}
    full = study.experts.train.model_copy(update={"mode": "full"})
    methods = {
        name: study.methods[name] for name in adapters if not merging.registry.get(adapters[name]["method"]).statistics
    }
    update = {"methods": methods, "experts": study.experts.model_copy(update={"train": full})}
    whole = Grid.of(study.model_copy(update=update))
    weights = merging.member_weights(whole, BASE, "with_imported", "1")
    assert [Path(file).name for file in weights.values()] == ["model.safetensors", "adapter_model.safetensors"]
    assert all(
        Path(file).name in ("task_vector.safetensors", "merged.json") for file in merging.files(whole, whole.final)
    )


def test_a_merge_is_told_what_determines_it(smoke: Grid) -> None:
    told = merging.merge_json(smoke, BASE, "with_imported", "1", [*smoke.final, *smoke.candidates])
    jobs = dict(zip([*smoke.final, *smoke.candidates], parsed(list[Merge], "--merges", told), strict=True))
    for merge_id, job in jobs.items():
        name, candidate = smoke.merges[merge_id]
        method = smoke.study.methods[name]
        assert job.out == Path(f"{FOLDER}/merged/{BASE}/with_imported/{merge_id}/seed-1")
        assert (job.method, job.space, job.preset) == (method.method, method.space, method.preset)
        assert method.parameters.items() <= job.parameters.items()
        assert (job.selection is not None) == (method.by is not None and candidate is None)
        assert job.form in ("adapter", "delta")
    chosen = [job.parameters["lambda"] for merge_id, job in jobs.items() if merge_id in smoke.candidates]
    assert chosen == smoke.study.methods["task_arithmetic"].choose["lambda"]  # type: ignore[index]
    needed = merging.needed(smoke, BASE, "with_imported", "1", jobs)
    read = [str(file) for job in jobs.values() for file in [*job.statistics.values(), job.selection] if file]
    assert sorted(needed) == sorted(read)
    assert any("/statistics/" in file for file in needed)


def test_dense_merges_may_be_temporary(smoke: Grid) -> None:
    dense = [file for file in merging.files(smoke, smoke.final) if file.endswith("task_vector.safetensors")]
    assert dense
    assert not any(merging.is_temporary(smoke, file) for file in dense)
    passing = Grid.of(smoke.study.model_copy(update={"keep_dense_merges": False}))
    temporary = [file for file in merging.files(passing, passing.final) if merging.is_temporary(passing, file)]
    assert temporary == dense


def test_experts_are_measured_on_their_own_training_data(smoke: Grid) -> None:
    assert merging.measured_data(smoke, "safety/seed-1/1x") == f"{FOLDER}/data/safety/train.parquet"
    assert merging.measured_data(smoke, "imported/polite") == f"{FOLDER}/data/safety/train.parquet"


# Batches


def test_rules_of_batches_fit_together(paper: Grid) -> None:
    merges = batching.merge_batches(paper)
    assert sorted(name for jobs in merges for name in jobs.members) == sorted([*paper.final, *paper.candidates])
    evaluated = [jobs.evaluate_rule for jobs in [*batching.expert_batches(paper), *merges]]
    judged = evaluating.judged_splits(paper)
    judges = batching.judge_batches(paper, judged)
    assert judged == ["test"]
    assert {jobs.evaluated_by for jobs in judges} <= {"evaluate_base", *evaluated}
    assert {jobs.split for jobs in merges if jobs.merge == "merge_candidates"} == {"validation"}
    assert not any(jobs.rule.startswith("judge_candidate") for jobs in judges)


def test_a_new_method_leaves_other_batches_alone(paper: Grid) -> None:
    methods = paper.study.model_dump()["methods"]
    more = changed(paper.study, methods={"slerp_new": {"method": "ties", "space": "delta"}} | methods)
    before, after = (set(batching.merge_batches(grid)) for grid in (paper, more))
    assert len(before - after) <= 1


# Evaluating


def test_a_suite_is_parsed_by_the_sections_of_the_config(smoke: Grid) -> None:
    told = parsed(SuiteOptions, "--suite", evaluating.suite_json(smoke, "test"))
    assert told.evaluation == smoke.study.evaluation.model_copy(update={"subjects_per_job": 1})
    assert {one.domain: one.name for one in told.benchmarks} == smoke.study.suites.test
    for one in told.benchmarks:
        assert one.benchmark == smoke.study.benchmarks[one.name].model_copy(update={"chance": 0.0, "judge": None})
        assert {f"{folder}/fetched.json" for folder in one.folders.values()} <= set(
            evaluating.suite_files(smoke, "test")
        )


def test_what_changes_no_response_changes_no_evaluation(smoke: Grid) -> None:
    study = smoke.study.model_dump()
    judged = {"tiny": {"model": "demo/judge", "revision": "0" * 40}}
    name = smoke.study.suites.test["safety"]
    benchmarks = study["benchmarks"] | {name: study["benchmarks"][name] | {"judge": "tiny", "chance": 0.25}}
    evaluation = study["evaluation"] | {"subjects_per_job": 2}
    other = changed(smoke.study, judges=judged, benchmarks=benchmarks, evaluation=evaluation)
    assert evaluating.suite_json(other, "test") == evaluating.suite_json(smoke, "test")
    seeded = changed(smoke.study, evaluation=study["evaluation"] | {"seed": 99})
    assert evaluating.suite_json(seeded, "test") != evaluating.suite_json(smoke, "test")
    (judgement,) = parsed(list[Judgement], "--judgements", evaluating.judgements_json(other, "test"))
    assert judgement.folder == Path(f"resources/models/demo/judge/{'0' * 40}")
    assert (judgement.benchmark, judgement.batch_size) == (name, other.study.judges["tiny"].batch_size)
    assert evaluating.judge_models(other, "test") == [f"{judgement.folder}/fetched.json"]
    assert evaluating.judgements_json(smoke, "test") == "[]"


def test_subjects_are_told_where_they_are_and_where_their_results_go(smoke: Grid) -> None:
    merged = f"merged/{BASE}/with_imported/ties_adapter/seed-1"
    told = json.loads(evaluating.subjects_json(smoke, [f"bases/{BASE}", merged], "test"))
    assert [subject["folder"] for subject in told] == [None, f"{FOLDER}/{merged}"]
    files = evaluating.evaluation_files(smoke, [f"bases/{BASE}", merged], "test")
    assert [f"{subject['out']}.parquet" for subject in told] == files[::3]
    (judged,) = json.loads(evaluating.judged_subjects_json(smoke, [merged], "test"))
    assert f"{judged['out']}.parquet" == evaluating.judged_files(smoke, [merged], "test")[0]
    assert f"{judged['responses']}.parquet" in evaluating.responses(smoke, [merged], "test")


# Selecting, collecting, analysing


def test_choices_are_made_by_validation_alone(smoke: Grid) -> None:
    pool = (BASE, "with_imported", "1")
    scores = selecting.candidate_scores(smoke, BASE, "with_imported", "task_arithmetic", "1")
    assert len(scores) == len(selecting.candidates_json(smoke, "task_arithmetic")) == len(smoke.candidates)
    assert {Path(file).name for file in [*scores, *selecting.member_scores(smoke, *pool)]} == {"validation.parquet"}
    experts = json.loads(selecting.soup_json(smoke, *pool))
    assert [expert["scores"] for expert in experts.values()] == selecting.member_scores(smoke, *pool)
    assert {expert["judged"] for expert in experts.values()} == {None}
    assert selecting.judged_members(smoke, *pool) == []
    assert soup_of(smoke) in smoke.final


def test_everything_evaluated_is_collected(smoke: Grid, paper: Grid) -> None:
    assert len(collecting.evaluated(smoke)) == len(set(collecting.evaluated(smoke)))
    assert collecting.judged(smoke) == []
    tests = [file for file in collecting.evaluated(paper) if file.endswith("/test.parquet")]
    assert collecting.judged(paper) == [file.replace("test.parquet", "test.judged.parquet") for file in tests]
    trainings = len(paper.study.bases) * len(paper.study.domains) * len(paper.study.seeds)
    assert len(collecting.trainings(paper)) == trainings


def test_paths_are_measured_between_experts_with_domains(smoke: Grid) -> None:
    told = analysing.path_options(smoke, BASE, "with_imported", "1")
    assert told[:2] == [
        f"--expert=safety={FOLDER}/experts/{BASE}/safety/seed-1/1x",
        f"--expert=polite={FOLDER}/experts/{BASE}/imported/polite",
    ]
    assert [word for word in told if word.startswith("--data")] == [
        f"--data=safety={FOLDER}/data/safety/validation.parquet"
    ]
    pattern = analysing.measured(smoke, "mode_connectivity")
    assert pattern.format(base=BASE, pool="with_imported", seed=1) in analysing.measurements(smoke, "mode_connectivity")
