"""The report of a study: one page that has every section, loads nothing, and prints what the files hold."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from mergetime.core.errors import UserError
from mergetime.papers.duration.names import NAMES
from mergetime.publishing.figures.style import styles
from mergetime.report import interactive, listing, page
from mergetime.report.health import failures
from tests.browser import study

ROOT = Path(__file__).resolve().parents[2]
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the texts outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open) and data.strip():
            self.texts.append(data.strip())

    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.tags}

    def after(self, text: str, count: int) -> list[str]:
        """The texts that follow the first that is ``text``."""
        place = self.texts.index(text)
        return self.texts[place + 1 : place + 1 + count]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report") / "synthetic"
    study.make(made)
    job = made.parent / "benchmarks/train_expert/small.jsonl"
    job.parent.mkdir(parents=True)
    job.write_text(json.dumps({"s": 90.0, "max_rss": 1234.0}) + "\n")
    return made


def built(folder: Path) -> Page:
    return Page(page.build(folder, folder / "claims.yaml", study.POOL, [folder.parent / "benchmarks"]))


@pytest.fixture(scope="module")
def made(folder: Path) -> Page:
    return built(folder)


def test_every_section_is_there(made: Page) -> None:
    sections = {"summary", "claims", "published", "audit", "by-duration", "curves", "figures", "tables", "run"}
    assert {*sections, "provenance"} <= made.ids()
    assert made.open == []


def test_every_link_leads_somewhere(made: Page) -> None:
    links = {attributes["href"] for tag, attributes in made.tags if tag == "a"}
    assert links
    assert links <= {f"#{name}" for name in made.ids()}


def test_every_table_and_figure_that_the_study_has_is_there(made: Page) -> None:
    tables = {"table_1", "table_2", "table_3", "table_4", "table_6", "table_7", "table_8", "health"}
    assert {*tables, "figure_1", "figure_4"} <= made.ids()
    assert not {"table_5", "table_9", "figure_2", "figure_3"} & made.ids()


@pytest.mark.parametrize("name", ["table_1", "table_3", "table_7", "health"])
def test_a_table_prints_what_its_markdown_prints(folder: Path, name: str) -> None:
    markdown = (folder / f"tables/{name}.md").read_text().replace("*", "").replace("\\", "").splitlines()
    rows = [row for part in listing.printed(folder / f"tables/{name}.parquet").listings for row in part.rows]
    cells = [row for row in rows if not isinstance(row, str)]
    assert cells
    for row in cells:
        texts = [f"{cell.text} {cell.small}".strip().replace("*", "") for cell in row]
        assert f"| {' | '.join(texts)} |" in [" ".join(line.split()) for line in markdown]


def test_nothing_is_loaded(made: Page) -> None:
    sources = [
        value for tag, attributes in made.tags for name, value in attributes.items() if name in ("src", "srcset", "data")
    ]  # fmt: skip
    assert len(sources) == 2
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert not [tag for tag, _ in made.tags if tag in ("link", "iframe", "object", "embed", "base")]
    policies = [a["content"] for tag, a in made.tags if tag == "meta" and "http-equiv" in a]
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'")


def test_texts_are_escaped(made: Page) -> None:
    assert study.HOSTILE in made.texts
    assert "onerror" not in {name for _, attributes in made.tags for name in attributes}


def test_a_claim_is_printed_with_its_verdict(made: Page) -> None:
    assert made.after("DARE helps", 2) == ["unasked", "– not testable"]
    first = made.texts.index("– not testable")
    assert first < made.texts.index("DARE helps")
    assert made.texts[first - 1] == "2"


def test_the_health_of_the_run_is_counted(made: Page) -> None:
    assert "large, code, seed 1: step 60" in made.texts
    assert made.after("train_expert", 5) == ["1", "1.5", "90.0", "1,234", "30.000"]


def test_answers_that_failed_are_counted(folder: Path, tmp_path: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    results.loc[results["benchmark"].eq("arithmetic").idxmax(), "items"] = study.ITEMS - 3
    evaluation = tmp_path / "evaluations/bases/small"
    evaluation.mkdir(parents=True)
    responses = {"benchmark": ["arithmetic"] * 3, "primary": [True, True, False], "response": ["12", " \n", ""]}
    for name in ("test.samples.parquet", "test.judged.samples.parquet"):
        pd.DataFrame(responses).to_parquet(evaluation / name)
    judged = {"stage": "judge_responses", "config": {"split": "test"}, "facts": {"requests": {"unreadable": 4}}}
    counted = failures(tmp_path, results, [judged])
    rows = {row[1].text: [cell.text for cell in row[2:]] for row in counted.rows if not isinstance(row, str)}
    assert rows["arithmetic"] == ["50", "2000", "3", "1", "—"]
    assert rows["requests"] == ["50", "2000", "0", "0", "4"]


def test_the_view_holds_values_intervals_and_items(folder: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    figure = interactive.quality(results, study.POOL, NAMES)
    _, _, by_domain = (menu.buttons for menu in figure.layout.updatemenus)
    assert [button.label for button in by_domain][:2] == ["Domain: average", "Domain: Mathematics"]
    names = [trace.name for trace in figure.data]
    place = names.index("TIES (delta)")
    drawn = by_domain[1].args[0]
    rows = results[(results["method"] == "ties") & (results["base"] == "small") & (results["domain"] == "math")]
    assert drawn["y"][place] == pytest.approx(100 * rows["value"])
    low, high, items, _ = drawn["customdata"][place][0]
    oracle = stats.binomtest(round(study.ITEMS * rows["value"].iloc[0]), study.ITEMS).proportion_ci(method="wilson")
    # The error in the results is that of n - 1 items.
    assert (low, high) == pytest.approx((100 * oracle.low, 100 * oracle.high), abs=0.5)
    assert items == study.ITEMS
    assert figure.data[place].customdata[0][2] == 4 * study.ITEMS
    assert figure.data[place].line.color == styles({("ties", "delta"): "ties"}, NAMES)["ties", "delta"].color


def test_menus_show_what_they_say(folder: Path) -> None:
    figure = interactive.quality(pd.read_parquet(folder / "results.parquet"), study.POOL, NAMES)
    bases, methods, _ = (menu.buttons for menu in figure.layout.updatemenus)
    assert [button.label for button in bases] == ["Base: small", "Base: large"]
    shown = [button.args[0]["visible"] for button in bases]
    assert shown[0] == [not one for one in shown[1]] == [trace.visible for trace in figure.data]
    ties = next(button.args[0] for button in methods if button.label == "Method: TIES (adapter)")
    chosen = [trace.name for trace, opacity in zip(figure.data, ties["opacity"], strict=True) if opacity]
    assert chosen == ["Base (no fine-tuning)", "Experts at T*", "TIES (adapter)"] * 2


def test_a_missing_file_is_named_with_its_target(folder: Path) -> None:
    file = folder / "tables/table_3.parquet"
    aside = file.rename(file.with_suffix(".aside"))
    with pytest.raises(UserError, match=r"table_3\.parquet is missing; snakemake makes it as table_3"):
        built(folder)
    aside.rename(file)


def test_a_study_without_a_paper_has_no_verdicts(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    (alone / "tables").mkdir(parents=True)
    for name in ("results.parquet", "curves.parquet", "tables/health.parquet"):
        shutil.copy(folder / name, alone / name)
    shutil.copy(folder / "tables/table_1.parquet", alone / "tables/sources.parquet")
    described = json.loads((folder / "study.json").read_text()) | {"paper": None}
    (alone / "study.json").write_text(json.dumps(described))
    page_of = Page(page.build(alone, None, study.POOL, []))
    assert {"summary", "by-duration", "curves", "sources", "health", "run", "provenance"} <= page_of.ids()
    assert not {"claims", "published", "audit", "figures", "table_1"} & page_of.ids()
    links = {attributes["href"] for tag, attributes in page_of.tags if tag == "a"}
    assert links <= {f"#{name}" for name in page_of.ids()}


def test_the_script_writes_the_page_and_its_record(folder: Path) -> None:
    out = folder / "report.html"
    done = subprocess.run(
        [sys.executable, "scripts/make_report.py", "--study", str(folder), "--claims", str(folder / "claims.yaml"),
         "--pool", study.POOL, "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The page's own record is no part of a page made again.
    assert out.read_text() == page.build(folder, folder / "claims.yaml", study.POOL, [])
    record = json.loads((folder / "report.json").read_text())
    assert {"results.parquet", "claims", "tables/table_3.parquet", "figures/figure_1.png"} <= set(record["inputs"])
    assert list(record["outputs"]) == ["report.html"]
