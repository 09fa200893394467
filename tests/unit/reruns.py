"""Which stages run again where a file changes, from the digests of all rules: `make reruns` writes docs/reruns.md.

The reference study has every merge method and data format, the tables and figures of the paper ``duration``, and both
of the repository's task folders.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import yaml

from mergetime import papers
from mergetime.config.reading import parse
from mergetime.config.study import Study
from mergetime.core import digests as code
from mergetime.core.registries import SCRIPTS
from mergetime.data import registry as formats
from mergetime.merging import registry as methods
from mergetime.workflow import digests

ROOT = SCRIPTS.parent
Stages = dict[str, dict[str, Callable[[], str]]]
"""The digest of each stage, in the order of the pipeline, by variant; a stage of one kind has the variant ''."""
ON_BASES = [f"measure_{what}" for what in ("expert", "interference", "bias_variance", "connectivity")]
SCRIPTS_ALONE = {
    "before": ["make_demo_hub", "make_rehearsal_hub", "pretrain_demo_base", "fetch_model", "fetch_dataset"],
    "after": ["collect_results", "collect_analysis"],
}
OF_PAPERS = ["compare_published", "audit_published", "judge_claims", "make_report", "make_package"]
"""Scripts whose digests cover what they run of a study's paper."""
HEAD = """# What runs again

Made by `make reruns`, compared by `tests/unit/test_reruns.py`. A row says which stages run again where that file is
changed, in a study that has every merge method, data format, table and figure; in brackets, which of a stage's jobs.
A file that is not listed changes no result.
"""


def reference(tasks: str) -> Study:
    """The demo with every merge method and data format, and a folder of tasks."""
    data = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    domain = data["domains"]["math"]
    data["domains"] |= {name: domain | {"format": name} for name in formats.names()}
    data["methods"] = {name: {"method": name, "space": methods.get(name).spaces[-1]} for name in methods.names()}
    data["methods"]["greedy_soup"]["by"] = "validation"
    data["evaluation"]["tasks"] = f"{ROOT}/config/tasks/{tasks}"
    if tasks == "paper":
        names = sorted(file.stem for file in (ROOT / "config/tasks/paper").glob("*.yaml"))
        any_of = next(iter(data["benchmarks"].values()))
        data["benchmarks"] |= {name: any_of | {"task": name} for name in names}
        for name in names:
            data["suites"]["validation" if name.startswith("surrogate_") else "test"][name] = name
    return parse(data, "reference")


def stages() -> Stages:
    """Every stage with its digests."""
    study, paper = reference("demo"), reference("paper")
    own, printed = {"demo": study, "paper": paper}, papers.get("duration")
    base = next(iter(study.bases))

    def on_base(stem: str) -> Callable[[], str]:
        return lambda: digests.on_base(study, base, stem)

    def alone(group: str) -> Stages:
        return {stem: {"": partial(code.code_digest, stem)} for stem in SCRIPTS_ALONE[group]}

    def with_those_of(digest: Callable[[], str], study: Study, group: str) -> str:
        return digest() + digests.of_tasks(study, group)

    def with_tasks(digest: Callable[[], str], *groups: str) -> dict[str, Callable[[], str]]:
        return {
            f"{group} of {name} tasks": partial(with_those_of, digest, of, group)
            for name, of in own.items()
            for group in groups
        }

    return {
        **alone("before"),
        "import_expert": {"": lambda: code.code_digest("import_expert")},
        "prepare_domain": {name: partial(digests.of_preparation, study, name) for name in formats.names()},
        "train_expert": {"": on_base("train_expert")},
        **{stem: {"": on_base(stem)} for stem in ON_BASES},
        "merge": {name: partial(digests.of_merges, study, [name]) for name in study.methods},
        "evaluate": with_tasks(on_base("evaluate"), "validation", "test"),
        "select_hyperparameters": {"": lambda: code.code_digest("select_hyperparameters")},
        "select_soup": with_tasks(lambda: digests.of_soup(study, base), "validation"),
        "judge_responses": {"": digests.of_judgements},
        **alone("after"),
        "make_table": {name: partial(entry.code, "make_table") for name, entry in printed.tables.items()},
        "make_figure": {name: partial(entry.code, "make_figure") for name, entry in printed.figures.items()},
        **{stem: {"": partial(printed.code, stem)} for stem in OF_PAPERS},
    }


def all_digests() -> dict[str, str]:
    """Every digest by stage and variant."""
    return {
        f"{stage} {name}".strip(): made() for stage, variants in stages().items() for name, made in variants.items()
    }


def rows() -> dict[str, list[str]]:
    """For each file that a digest covers, the stages that run again where it changes."""
    found: dict[str, list[str]] = {}
    made, unpatched = stages(), code._sha256
    before = {stage: {name: digest() for name, digest in variants.items()} for stage, variants in made.items()}
    files = [*SCRIPTS.rglob("*.py"), *(ROOT / "config/tasks").rglob("*.py"), *(ROOT / "config/tasks").rglob("*.yaml")]
    try:
        for file in sorted(files, key=lambda file: (file.parent, file.name)):
            code._sha256 = cache(partial(_sha256_where_changed, file, unpatched))
            code.code_digest.cache_clear()
            after = {stage: {name: digest() for name, digest in variants.items()} for stage, variants in made.items()}
            cells = [
                _cell(stage, variants, before[stage]) for stage, variants in after.items() if variants != before[stage]
            ]
            found[file.relative_to(ROOT).as_posix()] = _shortened(cells, list(made))
    finally:
        code._sha256 = unpatched
        code.code_digest.cache_clear()
    return {file: reruns for file, reruns in found.items() if reruns}


def _sha256_where_changed(changed: Path, sha256: Callable[[Path], str], file: Path) -> str:
    return "changed" if file == changed else sha256(file)


def _cell(stage: str, after: dict[str, str], before: dict[str, str]) -> str:
    changed = [name for name in after if after[name] != before[name]]
    return stage if len(changed) == len(after) else f"{stage} ({', '.join(changed)})"


def _shortened(cells: list[str], made: list[str]) -> list[str]:
    """One cell instead of all, or of all but one or two stages."""
    left = [stage for stage in made if stage not in cells]
    if len(left) > 2 or len(cells) + len(left) > len(made):
        return cells
    return [f"everything but {' and '.join(left)}" if left else "everything"]


def table(found: Mapping[str, list[str]]) -> str:
    """The table in Markdown, a section per folder."""
    lines, folder = [HEAD.rstrip()], ""
    for file, reruns in found.items():
        parent, _, name = file.rpartition("/")
        if parent != folder:
            lines += ["", f"## {parent}", "", "| file | runs again |", "|---|---|"]
            folder = parent
        lines.append(f"| `{name}` | {', '.join(reruns)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(all_digests()) if "--digests" in sys.argv else table(rows()), end="")
