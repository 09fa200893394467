"""What the rules ask of the package: inputs, options and batches of jobs, on the repository's studies."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mergetime.config import reading
from mergetime.config.sections import parse_json, parse_json_list
from mergetime.config.study import Study
from mergetime.core import digests as core_digests
from mergetime.evaluation.judging import Judgement
from mergetime.evaluation.options import SuiteOptions
from mergetime.merging.jobs import MergeJob
from mergetime.planning.jobs import stem_of
from mergetime.study.suites import benchmarks_of, groups
from mergetime.workflow import analysing, batching, collecting, digests, evaluating, merging, selecting
from mergetime.workflow.grid import Grid

ROOT = Path(__file__).parents[2]
BASE = "qwen3.5-demo"
FOLDER = "results/smoke"


def changed(study: Study, **sections: Any) -> Grid:
    """The grid of the study with other sections."""
    given = study.model_dump(exclude_unset=True)
    return Grid.of(reading.parse(given | sections, "c.yaml"))


def reported(grid: Grid, pool: str) -> list[str]:
    return analysing.reported(grid, pool)


def candidates(grid: Grid) -> list[str]:
    return [merge_id for merge_id, merge in grid.merges.items() if merge.candidate is not None]


@pytest.fixture(scope="module")
def smoke() -> Grid:
    return Grid.of(reading.load(ROOT / "config/smoke.yaml"))


@pytest.fixture(scope="module")
def paper() -> Grid:
    return Grid.of(reading.load(ROOT / "config/paper.yaml"))


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
    study = smoke.study.model_dump(exclude_unset=True)
    train = {"train": study["experts"]["train"] | {"mode": "full"}}
    methods = {"ties": {"method": "ties"}, "average": {"method": "simple_average"}}
    pools = {"same": {"experts": "all", "at": "1x"}, "guests": {"experts": ["polite"]}}
    whole = changed(smoke.study, methods=methods, pools=pools, experts=study["experts"] | train)
    assert [Path(file).name for file in merging.members(whole, BASE, "same_1x", "1")] == [
        "model.safetensors", "model.safetensors", "adapter_model.safetensors",
    ]  # fmt: skip
    assert {Path(file).name for file in merging.files(whole, ["average"], "same_1x")} == {
        "task_vector.safetensors", "merged.json",
    }  # fmt: skip
    assert Path(merging.files(whole, ["average"], "guests")[0]).name == "adapter_model.safetensors"
    # Files of different names are made by different rules.
    assert [(jobs.merge_rule, jobs.pools) for jobs in batching.merge_batches(whole)] == [
        ("merge_pool_0", ("same_1x",)),
        ("merge_pool_1_0", ("guests",)),
    ]


def test_a_merge_is_told_what_determines_it(smoke: Grid) -> None:
    told = merging.merge_json(smoke, BASE, "with_imported", "1", list(smoke.merges))
    jobs = dict(zip(smoke.merges, parse_json_list(MergeJob, told, "--merges"), strict=True))
    for merge_id, job in jobs.items():
        merge = smoke.merges[merge_id]
        method = smoke.study.methods[merge.method]
        assert job.out == Path(f"{FOLDER}/merged/{BASE}/with_imported/{merge_id}/seed-1")
        assert (job.method, job.space, job.preset) == (method.method, method.space, method.preset)
        assert method.parameters.items() <= job.parameters.items()
        assert (job.selection is not None) == (method.by is not None and merge.candidate is None)
        assert job.form in ("adapter", "delta")
    chosen = [job.parameters["lambda"] for merge_id, job in jobs.items() if merge_id in candidates(smoke)]
    assert chosen == smoke.study.methods["task_arithmetic"].choose["lambda"]  # type: ignore[index]
    needed = merging.needed(smoke, BASE, "with_imported", "1", jobs)
    read = [str(file) for job in jobs.values() for file in [*job.statistics.values(), job.selection] if file]
    assert sorted(needed) == sorted(read)
    assert any("/statistics/" in file for file in needed)


def test_dense_merges_may_be_temporary(smoke: Grid) -> None:
    dense = [
        file
        for file in merging.files(smoke, reported(smoke, "with_imported"), "with_imported")
        if file.endswith("task_vector.safetensors")
    ]
    assert dense
    assert not any(merging.is_temporary(smoke, file) for file in dense)
    passing = Grid.of(smoke.study.model_copy(update={"keep_dense_merges": False}))
    temporary = [
        file
        for file in merging.files(passing, reported(passing, "with_imported"), "with_imported")
        if merging.is_temporary(passing, file)
    ]
    assert temporary == dense


def test_experts_are_measured_on_their_own_training_data(smoke: Grid) -> None:
    assert merging.measured_data(smoke, "safety/seed-1/1x") == f"{FOLDER}/data/safety/train.parquet"
    assert merging.measured_data(smoke, "imported/polite") == f"{FOLDER}/data/safety/train.parquet"


# Batches


def test_rules_of_batches_fit_together(paper: Grid) -> None:
    merges = batching.merge_batches(paper)
    assert sorted(name for jobs in merges for name in jobs.members) == sorted(paper.merges)
    evaluated = [jobs.evaluate_rule for jobs in batching.expert_batches(paper)]
    evaluated += [jobs.evaluate_rule for jobs in merges]
    judged = evaluating.judged_splits(paper)
    judges = batching.judge_batches(paper, judged)
    assert judged == ["test"]
    assert {jobs.evaluated_by for jobs in judges} <= {"evaluate_base", *evaluated}
    assert {jobs.split for jobs in merges if jobs.merge == "merge_candidates"} == {"validation"}
    assert not any(jobs.rule.startswith("judge_candidate") for jobs in judges)


def test_a_new_method_leaves_other_batches_alone(paper: Grid) -> None:
    methods = paper.study.model_dump(exclude_unset=True)["methods"]
    more = changed(paper.study, methods={"slerp_new": {"method": "ties", "space": "delta"}} | methods)
    before, after = (set(batching.merge_batches(grid)) for grid in (paper, more))
    assert len(before - after) <= 1


def test_pools_with_other_merges_have_batches_of_their_own(smoke: Grid) -> None:
    methods = smoke.study.model_dump(exclude_unset=True)["methods"]
    one = {"alone": {"method": "ties", "sweep": {"density": [0.1, 1.0]}, "pools": ["with_imported"]}}
    grid = changed(smoke.study, methods=methods | one)
    for pool in grid.pools:
        made = {name for jobs in batching.merge_batches(grid) if pool in jobs.pools for name in jobs.members}
        assert ({"alone", "alone.density-0.1", "alone.density-1"} <= made) == (pool == "with_imported")
    rules = [jobs.merge_rule for jobs in batching.merge_batches(grid)]
    assert len(set(rules)) == len(rules)
    assert {stem_of(rule) for rule in rules} == {"merge_pool", "merge_candidates"}


def test_recipes_have_batches_of_their_own(smoke: Grid) -> None:
    experts = smoke.study.model_dump(exclude_unset=True)["experts"]
    recipe = {name: experts.pop(name) for name in ("train", "durations")}
    full = recipe | {"train": recipe["train"] | {"mode": "full"}}
    pools = {"same": {"experts": "all", "at": "1x", "recipe": "short"}}
    methods = {"ties": {"method": "ties"}}
    grid = changed(
        smoke.study, methods=methods, pools=pools, experts=experts | {"recipes": {"short": recipe, "whole": full}}
    )
    found = [(jobs.evaluate_rule, jobs.weights, jobs.subjects[0]) for jobs in batching.expert_batches(grid)]
    duration = batching.expert_batches(grid)[0].members[0]
    pattern = "experts/{base}/{domain}/%s/seed-{seed}/" + duration
    assert found == [
        ("evaluate_expert_0", "adapter_model.safetensors", pattern % "short"),
        ("evaluate_expert_1_0", "model.safetensors", pattern % "whole"),
    ]
    assert merging.measured_data(grid, f"safety/short/seed-1/{duration}") == f"{FOLDER}/data/safety/train.parquet"


# Evaluating


def test_a_suite_is_parsed_by_the_sections_of_the_config(smoke: Grid) -> None:
    told = parse_json(SuiteOptions, evaluating.suite_json(smoke, BASE, "test"), "--suite")
    assert told.evaluation == smoke.study.evaluation.model_copy(update={"subjects_per_job": 1})
    assert [(one.domain, one.name) for one in told.benchmarks] == benchmarks_of(smoke.study, "test")
    for one in told.benchmarks:
        assert one.benchmark == smoke.study.benchmarks[one.name].model_copy(update={"chance": 0.0, "judge": None})
        assert {f"{folder}/fetched.json" for folder in one.folders.values()} <= set(
            evaluating.suite_files(smoke, "test")
        )


def test_what_changes_no_response_changes_no_evaluation(smoke: Grid) -> None:
    study = smoke.study.model_dump(exclude_unset=True)
    judged = {"tiny": {"model": "demo/judge", "revision": "0" * 40}}
    name = dict(benchmarks_of(smoke.study, "test"))["safety"]
    benchmarks = study["benchmarks"] | {name: study["benchmarks"][name] | {"judge": "tiny", "chance": 0.25}}
    evaluation = study["evaluation"] | {"subjects_per_job": 2}
    other = changed(smoke.study, judges=judged, benchmarks=benchmarks, evaluation=evaluation)
    assert evaluating.suite_json(other, BASE, "test") == evaluating.suite_json(smoke, BASE, "test")
    seeded = changed(smoke.study, evaluation=study["evaluation"] | {"seed": 99})
    assert evaluating.suite_json(seeded, BASE, "test") != evaluating.suite_json(smoke, BASE, "test")
    (judgement,) = parse_json_list(Judgement, evaluating.judgements_json(other, "test"), "--judgements")
    assert judgement.folder == Path(f"resources/models/demo/judge/{'0' * 40}")
    assert (judgement.benchmark, judgement.batch_size) == (name, other.study.judges["tiny"].batch_size)
    assert evaluating.judge_models(other, "test") == [f"{judgement.folder}/fetched.json"]
    assert evaluating.judgements_json(smoke, "test") == "[]"


def test_a_task_counts_in_its_own_groups_however_a_benchmark_is_listed(smoke: Grid, tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "config/tasks/demo", tmp_path / "tasks")
    evaluation = smoke.study.evaluation.model_dump() | {"tasks": str(folder)}
    suites = smoke.study.suites.model_dump() | {"more": {"safety": ["requests"]}}
    study = changed(smoke.study, evaluation=evaluation, suites=suites).study
    before = {group: digests.of_tasks(study, group) for group in groups(study)}
    with (folder / "demo_requests.yaml").open("a") as file:
        file.write("repeats: 1\n")
    core_digests._sha256.cache_clear()
    after = {group: digests.of_tasks(study, group) for group in groups(study)}
    assert [group for group in before if before[group] != after[group]] == ["test", "more"]
    suites["test"]["safety"] = ["requests"]
    assert digests.of_tasks(changed(study, suites=suites).study, "test") == after["test"]


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
    assert len(scores) == len(selecting.candidates_json(smoke, "task_arithmetic")) == len(candidates(smoke))
    assert {Path(file).name for file in [*scores, *selecting.member_scores(smoke, *pool)]} == {"validation.parquet"}
    experts = json.loads(selecting.soup_json(smoke, *pool))
    assert [expert["scores"] for expert in experts.values()] == selecting.member_scores(smoke, *pool)
    assert {expert["judged"] for expert in experts.values()} == {None}
    assert selecting.judged_members(smoke, *pool) == []
    assert soup_of(smoke) in reported(smoke, "with_imported")


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
