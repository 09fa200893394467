"""Papers: what a study of one has, what a study of none has, and what a new one leaves alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from mergetime import papers
from mergetime.config.reading import load, parse
from mergetime.config.study import Study
from mergetime.core.errors import UserError
from mergetime.core.registries import members
from mergetime.publishing.entry import Entry, Need
from mergetime.publishing.needs import missing, offered
from mergetime.publishing.registry import TABLES
from mergetime.workflow import publishing

ROOT = Path(__file__).resolve().parents[2]
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())


def study(**changes: Any) -> Study:
    return parse(DEMO | changes, "demo")


def test_every_paper_has_its_data_and_its_functions() -> None:
    for name in members("papers"):
        paper = papers.get(name)
        assert paper.id == name
        assert (ROOT / paper.folder).is_dir()
        assert {entry.names for entry in [*paper.tables.values(), *paper.figures.values()]} == {paper.names}
        assert not set(paper.tables) & set(paper.figures)


def test_the_data_of_every_paper_have_a_paper() -> None:
    assert {folder.name for folder in (ROOT / papers.DATA).iterdir()} <= set(members("papers"))


def test_without_a_paper_there_is_what_every_study_has() -> None:
    nothing = papers.get(None)
    assert (nothing.tables, nothing.figures) == (TABLES, {})
    assert nothing.claims is None
    assert nothing.printed == []


def test_a_common_table_is_not_made_twice() -> None:
    names = set(papers.get("duration").tables)
    assert "table_1" in names
    assert "sources" not in names
    assert "health" in names


def test_an_unknown_paper_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"paper 'duratoin' is unknown; did you mean 'duration'\?"):
        papers.get("duratoin")
    with pytest.raises(UserError, match=r"demo: paper: 'duratoin' is no paper; did you mean 'duration'\?"):
        study(paper="duratoin")


def test_the_key_may_be_absent() -> None:
    content = {key: value for key, value in DEMO.items() if key != "paper"}
    assert parse(content, "demo").paper is None
    assert study().paper == "duration"


def test_a_description_from_before_the_key_is_of_the_first_paper() -> None:
    old = json.loads(study().model_dump_json(exclude={"paper"})) | {"claims": "config/claims/duration.yaml"}
    assert parse(old, "study.json") == study()
    assert parse(old | {"claims": "mine.yaml"}, "study.json").paper is None


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("table_5", {}, "a third base; this study has 1"),
        ("table_3", {"methods": {}}, "merges of experts of one duration in the first of the pools"),
        ("table_2", {"suites": {"validation": {}, "test": {"math": "arithmetic"}}}, "the domain safety in suites.test"),
        ("table_3", {"suites": {"validation": {}, "test": {"safety": "requests"}}}, "a domain beside safety in suites.test, to average over"),
        ("figure_2", {"analyses": []}, "bias_variance among the analyses"),
        ("figure_3", {"analyses": []}, "mode_connectivity among the analyses"),
        ("figure_1", {"experts": DEMO["experts"] | {"durations": {"steps": [10]}}}, "durations in multiples of T*"),
        ("table_6", {"pools": {"one": {"experts": [{"expert": "math", "at": "1x"}, {"expert": "code", "at": "2x"}]}}}, "merges of experts of one duration"),
        ("health", {"experts": {"imported": {"a": {"model": "o/a", "revision": "0" * 40, "base": "qwen3.5-demo", "domain": "math"}}}, "pools": {"one": {"experts": ["a"]}}, "analyses": []}, "experts that the study trains"),
    ],
)  # fmt: skip
def test_what_a_study_lacks_is_said(name: str, changes: dict[str, Any], sentence: str) -> None:
    changes = {"methods": {"ties": {"method": "ties"}}} | changes
    lacking = study(**changes)
    with pytest.raises(SystemExit, match=r"^error: ") as raised:
        publishing.inputs(lacking, name)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"error: {name} needs {sentence}")
    assert name not in [*publishing.tables(lacking), *publishing.figures(lacking)]


def test_needs_are_asked_in_their_order() -> None:
    entry = Entry(
        "x:y", needs=(Need(lambda _: True, "one"), Need(lambda _: False, "two"), Need(lambda _: False, "three"))
    )
    assert missing(entry, study()) == "two"
    assert offered({"kept": Entry("x:y"), "left": entry}, study()) == {"kept": Entry("x:y")}


def test_without_a_paper_nothing_is_compared_or_judged() -> None:
    alone = study(paper=None)
    targets: list[Literal["compare_published", "audit_published"]] = ["compare_published", "audit_published"]
    for target in targets:
        with pytest.raises(SystemExit, match=f"^error: {target} needs a paper with printed numbers in config/papers"):
            publishing.printed(alone, target)
    with pytest.raises(SystemExit, match=r"^error: claims needs claims; "):
        publishing.judged_claims(alone)
    mine = "config/papers/duration/claims.yaml"
    assert publishing.judged_claims(study(paper=None, claims=mine)) == mine
    with pytest.raises(SystemExit, match=r"^error: claims: mine\.yaml: no such file; correct the study's key claims"):
        publishing.judged_claims(study(paper=None, claims="mine.yaml"))
    assert publishing.reported(alone) == [f"results/demo/tables/{name}.parquet" for name in ("sources", "health")]


def test_tables_of_another_paper_say_whose_they_are() -> None:
    assert publishing.elsewhere(study()) == {
        "sources": "sources is called table_1 in the paper duration; ask for that",
    }
    alone = publishing.elsewhere(study(paper=None))
    assert alone["table_3"] == "table_3 needs the paper duration; the study's key paper names none"
    assert {"table_2", "figure_1"} <= alone.keys()
    assert not alone.keys() & {"sources", "health"}


def test_what_a_study_of_a_paper_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    demo = study()
    assert publishing.inputs(demo, "table_6") == ["results/demo/results.parquet", "results/demo/samples.parquet"]
    options = publishing.options(demo, "table_6")
    assert options[:2] == ["--paper=duration", "--results=results/demo/results.parquet"]
    assert '"arithmetic": {"chance": 0.0, "weights": "items"}' in options[-1]
    printed = publishing.printed(demo, "audit_published")
    assert {Path(file).name for file in printed} >= {"paper.yaml", "statements.yaml", "table_2_safety.csv"}
    assert "config/papers/duration/claims.yaml" not in printed
    assert publishing.judged_claims(demo) == "config/papers/duration/claims.yaml"
    assert {"results/demo/claims.parquet", "results/demo/published/audit.parquet"} <= set(publishing.reported(demo))
    assert "results/demo/package/analysis/barriers.parquet" in publishing.packed(demo)
    assert publishing.shown_pool(demo) == "same_duration"


def digests(scripts: Path) -> dict[str, str]:
    """The digest of every table and figure, and of what judges and compares, of a copy of the package."""
    code = """
import json
from mergetime import papers
paper = papers.get("duration")
found = {name: entry.code("make_table") for name, entry in {**paper.tables, **paper.figures}.items()}
found |= {name: paper.code(name) for name in ("compare_published", "audit_published", "judge_claims")}
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True, env={})
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_new_paper_or_table_changes_no_digest(tmp_path: Path) -> None:
    scripts = Path(
        shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    )
    before = digests(scripts)
    package = scripts / "mergetime/papers"
    (package / "another").mkdir()
    for name in ("__init__.py", "paper.py"):
        (package / "another" / name).write_text('"""Another paper."""\n')
    (package / "duration/tables/another.py").write_text('"""Another table."""\n')
    for registry in (package / "duration/paper.py", scripts / "mergetime/publishing/registry.py"):
        registry.write_text(registry.read_text() + "\n# Another entry.\n")
    assert digests(scripts) == before
    names = package / "duration/names.py"
    names.write_text(names.read_text() + "\n# Another name.\n")
    after = digests(scripts)
    assert [name for name, digest in after.items() if digest == before[name]] == []


def test_every_config_follows_a_paper() -> None:
    for name in ("demo", "smoke", "paper"):
        assert load(ROOT / f"config/{name}.yaml").paper == "duration"
