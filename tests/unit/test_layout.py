"""Where artifacts are: one definition gives a job's files and a rule's patterns, and nobody else spells them."""

import re
from pathlib import Path

import pytest

from mergetime.config.reading import load
from mergetime.study import layout
from mergetime.study.layout import Layout

ROOT = Path(__file__).parents[2]
PATHS = Layout("results/duration")
_NAMES = "experts|imported|merged|routed|evaluations|selections|statistics|analysis|checkpoints|resources"
PIECE = re.compile(rf"""["'/}}](?:{_NAMES})/|/ "(?:{_NAMES})"|"(?:{_NAMES})" /""")
SPELLED_ELSEWHERE = {
    # Files below the folder of a package or a report, by the names that readers see there.
    "scripts/mergetime/packaging/package.py",
    "scripts/mergetime/publishing/entry.py",
    "scripts/mergetime/publishing/registry.py",
    "scripts/mergetime/workflow/publishing.py",
    # What is said to people of an analysis that is not there, and where the plan looks for what is fetched.
    "scripts/mergetime/claims/evidence.py",
    "scripts/mergetime/claims/statistics.py",
    "scripts/mergetime/planning/prices.py",
    # Rules before merging, and of the paper.
    "Snakefile",
    "rules/common.smk",
    "rules/targets.smk",
    "rules/stages/compare.smk",
    "rules/stages/demo.smk",
    "rules/stages/fetch.smk",
    "rules/stages/train.smk",
}


def test_paths_of_existing_studies_stay() -> None:
    expert = layout.expert("qwen", "math", 1, "0.25x")
    assert expert == "experts/qwen/math/seed-1/0.25x"
    assert layout.imported("qwen", "cute") == "experts/qwen/imported/cute"
    assert layout.merged("qwen", "all_1x", "ties", 1) == "merged/qwen/all_1x/ties/seed-1"
    assert layout.base("qwen") == "bases/qwen"
    assert PATHS.folder(expert) == "results/duration/experts/qwen/math/seed-1/0.25x"
    assert (
        PATHS.evaluation(expert, "test") == "results/duration/evaluations/experts/qwen/math/seed-1/0.25x/test.parquet"
    )
    assert PATHS.judged("bases/qwen", "test", "json") == "results/duration/evaluations/bases/qwen/test.judged.json"
    assert PATHS.statistic(expert, "gram") == "results/duration/statistics/qwen/math/seed-1/0.25x/gram.safetensors"
    assert PATHS.selection("qwen", "all", "soup", 2) == "results/duration/selections/qwen/all/soup/seed-2.json"
    training = layout.training("qwen", "math", 1)
    assert PATHS.curve(training) == "results/duration/experts/qwen/math/seed-1/curve.parquet"
    assert PATHS.checkpoints(training) == "results/duration/checkpoints/qwen/math/seed-1"
    measured = PATHS.measurement("bias_variance", "qwen", "all", 1)
    assert measured == "results/duration/analysis/probabilities/qwen/all/seed-1.parquet"
    assert PATHS.package() == "results/duration/package"


def test_recipes_other_than_the_default_have_a_piece_of_their_own() -> None:
    assert layout.expert("qwen", "math", 1, "1x", "default") == layout.expert("qwen", "math", 1, "1x")
    assert layout.expert("qwen", "math", 1, "1x", "full") == "experts/qwen/math/full/seed-1/1x"


@pytest.mark.parametrize("recipe", ["default", "full"])
def test_a_pattern_filled_in_is_the_path_of_a_job(recipe: str) -> None:
    pattern = PATHS.statistic(layout.expert("{base}", "{domain}", "{seed}", "{duration}", recipe), "{kind}")
    filled = pattern.format(base="qwen", domain="math", seed=1, duration="1x", kind="mask")
    assert filled == PATHS.statistic(layout.expert("qwen", "math", 1, "1x", recipe), "mask")


def test_a_study_has_its_folder_below_results() -> None:
    assert layout.of(load(ROOT / "config/smoke.yaml")) == Layout("results/smoke")


def test_no_other_file_spells_a_path() -> None:
    files = [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk"), *ROOT.glob("scripts/**/*.py")]
    spelling = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(PIECE.search(line) for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    }
    assert "scripts/mergetime/study/layout.py" in spelling
    assert spelling - {"scripts/mergetime/study/layout.py"} <= SPELLED_ELSEWHERE
