"""Headless Chromium, and a report to open in it."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergetime.report import page
from tests.browser import study
from tests.workflow.conftest import ROOT

sys.path.append(os.environ.get("BROWSER_DIR", str(ROOT / ".cache/browser")))
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small study, as a file."""
    folder = tmp_path_factory.mktemp("browser") / "synthetic"
    claims = study.make(folder)
    file = folder / "report.html"
    file.write_text(page.build(folder, claims, study.POOL, []))
    return file


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Root may not use Chromium's own sandbox; the only page that is opened is ours.
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield opened
        opened.close()
