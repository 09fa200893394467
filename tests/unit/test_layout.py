"""Where artifacts are: one definition gives a job's files and a rule's patterns, and nobody else spells them."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from mergetime.config.reading import load
from mergetime.study import layout
from mergetime.study.layout import Layout

ROOT = Path(__file__).parents[2]
PATHS = Layout("results/duration")
_FOLDERS = "experts|imported|merged|evaluations|selections|statistics|analysis|checkpoints|resources"
_FOLDERS_OF_RULES = f"{_FOLDERS}|data|tables|figures|published|package"
NAMES_IN_A_FOLDER = {
    # What readers see in the folder of a study or a package, which is given.
    "scripts/mergetime/packaging/package.py",
    "scripts/mergetime/publishing/entry.py",
    # What is said to people of an analysis that is not there.
    "scripts/mergetime/claims/evidence.py",
    "scripts/mergetime/claims/statistics.py",
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


def test_paths_of_what_is_published_stay() -> None:
    assert PATHS.data_record("math") == "results/duration/data/math/domain.json"
    assert PATHS.data("math", "train") == "results/duration/data/math/train.parquet"
    assert PATHS.table("table_3") == "results/duration/tables/table_3.md"
    assert PATHS.figure("figure_1") == "results/duration/figures/figure_1.pdf"
    assert PATHS.published("audit", "md") == "results/duration/published/audit.md"
    assert PATHS.claims("md") == "results/duration/claims.md"
    assert PATHS.report() == "results/duration/report.html"
    assert PATHS.package_record == "results/duration/package.json"
    assert PATHS.file(PATHS.below(PATHS.study)) == PATHS.study == "results/duration/study.json"


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


def _spelling(folders: str, files: Iterable[Path]) -> set[str]:
    """The files that spell the path of something in one of these folders, or below the folder of a study."""
    piece = re.compile(rf"""["'/}}](?:{folders})/|/ "(?:{folders})"|"(?:{folders})" /|root\}}/""")
    return {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(piece.search(line) for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    }


def test_no_rule_spells_a_path() -> None:
    files = [ROOT / "Snakefile", *ROOT.glob("rules/**/*.smk"), *ROOT.glob("scripts/mergetime/workflow/*.py")]
    assert _spelling(_FOLDERS_OF_RULES, files) == set()


def test_no_script_spells_a_path_of_an_artifact() -> None:
    layout_alone = {"scripts/mergetime/study/layout.py"}
    assert _spelling(_FOLDERS, ROOT.glob("scripts/**/*.py")) == layout_alone | NAMES_IN_A_FOLDER
