"""The report in headless Chromium: it opens without a network, its menus change the picture, it fits its window."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import study

LAPTOP, PHONE = (1280, 800), (390, 844)
PLOTS = ("quality", "losses")


@dataclass
class Opened:
    """A report in a window, and what the browser had to say about it."""

    page: Page
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def choose(self, plot: str, menu: str, item: str) -> None:
        """Choose an item of one of a plot's menus with the mouse, as a reader does."""
        self.page.locator(f"#{plot} .updatemenu-header", has_text=f"{menu}: ").click()
        self.page.locator(f"#{plot} .updatemenu-dropdown-button").get_by_text(f"{menu}: {item}", exact=True).click()
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(400)

    def picture(self, plot: str) -> bytes:
        return self.page.locator(f"#{plot} .main-svg").first.screenshot(animations="disabled")

    def lines(self, plot: str) -> list[str]:
        """The lines that can be seen, as the paths that draw them."""
        script = "all => all.filter(t => getComputedStyle(t).opacity > 0).map(t => t.querySelector('.js-line')?.getAttribute('d'))"
        return [line for line in self.page.locator(f"#{plot} .trace.scatter").evaluate_all(script) if line]

    def boxes(self, selector: str) -> list[dict[str, Any]]:
        script = "all => all.map(e => ({text: e.textContent, ...e.getBoundingClientRect().toJSON()}))"
        return [box for box in self.page.locator(selector).evaluate_all(script) if box["width"]]


def opened(browser: Browser, report: Path, size: tuple[int, int]) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, offline=True)
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(report.as_uri())
    for plot in PLOTS:
        found.page.wait_for_selector(f"#{plot} .js-line", state="attached")
    yield found
    context.close()


@pytest.fixture
def laptop(browser: Browser, report: Path) -> Iterator[Opened]:
    yield from opened(browser, report, LAPTOP)


@pytest.fixture(params=[LAPTOP, PHONE], ids=["laptop", "phone"])
def window(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Iterator[Opened]:
    yield from opened(browser, report, request.param)


def test_it_opens_in_silence_and_asks_for_nothing(window: Opened, report: Path) -> None:
    height = window.page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 800):
        window.page.evaluate("top => scrollTo(0, top)", top)
        window.page.wait_for_timeout(20)
    for summary in window.page.locator("summary").all():
        summary.click()
    assert window.said == []
    assert window.requests == [report.as_uri()]


@pytest.mark.parametrize(
    ("plot", "menu", "item"),
    [
        ("quality", "Base", "large"),
        ("quality", "Method", "TIES (adapter)"),
        ("quality", "Domain", "Safety"),
        ("losses", "Base", "large"),
        ("losses", "Domain", "Code"),
        ("losses", "Loss", "Training loss"),
    ],
)
def test_every_menu_changes_the_picture(laptop: Opened, plot: str, menu: str, item: str) -> None:
    before = laptop.picture(plot)
    assert laptop.picture(plot) == before
    laptop.choose(plot, menu, item)
    assert laptop.picture(plot) != before
    assert laptop.said == []


def test_the_menus_work_together(laptop: Opened) -> None:
    everything = laptop.lines("quality")
    assert len(everything) == 2 + len(study.METHODS)
    laptop.choose("quality", "Method", "Simple Averaging")
    assert len(laptop.lines("quality")) == 3
    laptop.choose("quality", "Domain", "Code")
    code = laptop.lines("quality")
    assert len(code) == 3
    laptop.choose("quality", "Base", "large")
    assert len(laptop.lines("quality")) == 3
    assert laptop.lines("quality") != code
    assert laptop.page.locator("#quality .ytitle").text_content() == "Accuracy, code (%)"
    for menu, item in (("Base", "small"), ("Method", "all"), ("Domain", "average")):
        laptop.choose("quality", menu, item)
    assert laptop.lines("quality") == everything


def test_pointing_at_a_marker_tells_value_interval_and_items(laptop: Opened) -> None:
    laptop.page.locator("#quality").scroll_into_view_if_needed()
    marker = laptop.page.locator("#quality .trace.scatter .point").first
    box = marker.bounding_box()
    assert box is not None
    laptop.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    laptop.page.wait_for_selector("#quality .hoverlayer .hovertext", state="attached")
    told = laptop.page.locator("#quality .hoverlayer").text_content()
    assert told is not None
    assert f"n = {4 * study.ITEMS} items" in told
    assert "95 % interval" in told


def test_lines_that_are_not_chosen_do_not_answer(laptop: Opened) -> None:
    markers = laptop.page.locator("#quality .trace.scatter .point")
    laptop.page.locator("#quality").scroll_into_view_if_needed()
    places = [one.bounding_box() for one in markers.all()]
    assert len(places) == len(study.METHODS) * len(study.MULTIPLES)
    laptop.choose("quality", "Method", "TIES (delta)")
    told = set()
    for place in places:
        assert place is not None
        laptop.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        laptop.page.wait_for_timeout(150)
        told.update(laptop.page.locator("#quality .hoverlayer .hovertext .nums").all_text_contents())
    assert any(text.startswith("TIES (delta)") for text in told)
    assert not any(text.startswith(("TIES (adapter)", "Simple Averaging")) for text in told)


def test_the_page_fits_its_window(window: Opened) -> None:
    width = window.page.evaluate("innerWidth")
    assert window.page.evaluate("document.documentElement.scrollWidth") == width
    outside = "main *:not(.scroll *):not(pre *):not(.js-plotly-plot *)"
    assert [box["text"][:60] for box in window.boxes(outside) if box["right"] > width] == []


@pytest.mark.parametrize("plot", PLOTS)
def test_labels_of_plots_are_whole_and_apart(window: Opened, plot: str) -> None:
    frame = window.boxes(f"#{plot}")[0]
    labels = [
        box
        for kind in (".xtick", ".ytick", ".legendtext", ".updatemenu-item-text", ".xtitle", ".ytitle")
        for box in window.boxes(f"#{plot} {kind}")
    ]
    assert len(labels) > 10
    for label in labels:
        assert frame["left"] <= label["left"], label["text"]
        assert label["right"] <= frame["right"], label["text"]
        assert frame["top"] <= label["top"], label["text"]
        assert label["bottom"] <= frame["bottom"], label["text"]
    for one, other in itertools.combinations(labels, 2):
        apart = one["right"] <= other["left"] or other["right"] <= one["left"]
        apart = apart or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
        assert apart, f"{one['text']} over {other['text']}"
