"""The commits that a config pins, beside those of a hub, and their way into its text."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime.core.errors import UserError
from mergetime.hub import revisions

ROOT = Path(__file__).parents[2]
OLD, NEW, OTHER = "ef" * 20, "ab" * 20, "cd" * 20
CONFIG = f"""\
# A comment that says revision: unresolved and stays.
study: small

bases:
  small: {{model: o/m, revision: unresolved, dtype: float32}}  # and this one

domains:
  math: {{dataset: o/d, revision: unresolved, format: dart_math, train: 4, validation: 2}}
  code:
    dataset: o/d
    revision:   'unresolved'   # quoted, with a comment behind
    format: magicoder
    train: 4
    validation: 2

experts:
  imported:
    polite: {{model: o/adapter, revision: {OLD}, base: small}}

pools: {{two: {{experts: [polite]}}}}
methods: {{simple_average: {{method: simple_average}}}}

benchmarks:
  words: {{task: words, dataset: o/words, revision: {OTHER}, metric: "acc,none"}}
  none: {{task: none, dataset: o/none, revision: unresolved, metric: "acc,none"}}

suites: {{validation: {{}}, test: {{math: words}}}}

judges:
  strict: {{model: o/m, revision: unresolved}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hub without the data set o/none; the adapter has moved on since."""
    commits = {"models/o/m": NEW, "models/o/adapter": NEW, "datasets/o/d": NEW, "datasets/o/words": OTHER}
    for name, commit in commits.items():
        (tmp_path / "hub" / name).mkdir(parents=True)
        (tmp_path / "hub" / name / ".commit").write_text(commit)
    return tmp_path / "hub"


def resolve(config: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/resolve_revisions.py"), "--config", str(config)]
    return subprocess.run(
        [*command, "--hub-folder", str(folder), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )


def test_each_key_is_a_row_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    done = resolve(config, folder)
    assert done.returncode == 1, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["bases.small", "model", "o/m", "unresolved", NEW, "new"],
        ["domains.math", "dataset", "o/d", "unresolved", NEW, "new"],
        ["domains.code", "dataset", "o/d", "unresolved", NEW, "new"],
        ["experts.imported.polite", "model", "o/adapter", OLD, NEW, "moved"],
        ["benchmarks.words", "dataset", "o/words", OTHER, OTHER, "same"],
        ["benchmarks.none", "dataset", "o/none", "unresolved", "-", "gone"],
        ["judges.strict", "model", "o/m", "unresolved", NEW, "new"],
    ]
    assert config.read_text() == CONFIG


def test_writing_changes_what_has_no_commit_and_no_other_character(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_bytes(CONFIG.replace("\n", "\r\n").encode())
    done = resolve(config, folder, "--write")
    assert done.returncode == 1, done.stderr
    expected = CONFIG.replace("o/m, revision: unresolved", f"o/m, revision: {NEW}")
    expected = expected.replace("o/d, revision: unresolved", f"o/d, revision: {NEW}").replace("'unresolved'", NEW)
    assert config.read_bytes() == expected.replace("\n", "\r\n").encode()

    (folder / "datasets/o/none").mkdir()
    (folder / "datasets/o/none/.commit").write_text(OTHER)
    done = resolve(config, folder, "--write", "--move")
    assert done.returncode == 0, done.stderr
    expected = expected.replace(OLD, NEW).replace("o/none, revision: unresolved", f"o/none, revision: {OTHER}")
    assert config.read_bytes() == expected.replace("\n", "\r\n").encode()
    assert resolve(config, folder).returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hub", "small.yaml"]


def test_the_configs_of_this_repository_can_be_written() -> None:
    for config in sorted((ROOT / "config").glob("*.yaml")):
        text = config.read_text()
        keys = [
            (*above, name)
            for above in (("bases",), ("domains",), ("benchmarks",), ("judges",), ("experts", "imported"))
            for name, section in _section(yaml.safe_load(text), above).items()
            if "revision" in section
        ]
        changed = revisions.replaced(text, dict.fromkeys(keys, NEW), str(config))
        assert changed.count(NEW) == len(keys)
        for key in keys:
            assert _section(yaml.safe_load(changed), key)["revision"] == NEW


def _section(data: Any, key: tuple[str, ...]) -> dict[str, Any]:
    for part in key:
        data = data.get(part) or {}
    return dict(data)


def test_a_commit_of_digits_alone_stays_text() -> None:
    text = revisions.replaced("bases: {a: {revision: unresolved}}\n", {("bases", "a"): "1" * 40}, "a.yaml")
    assert text == f'bases: {{a: {{revision: "{"1" * 40}"}}}}\n'


@pytest.mark.parametrize(
    "text",
    [
        "bases: {a: &a {model: o/m, revision: unresolved}, b: *a}\n",
        "bases: {a: {revision: &r unresolved}, b: {revision: *r}}\n",
        "bases: {x: &x {revision: unresolved}, a: {<<: *x}}\n",
    ],
)
def test_a_commit_that_keys_share_is_not_changed_for_one_of_them(text: str) -> None:
    with pytest.raises(UserError, match=r"a\.yaml: bases\.a: "):
        revisions.replaced(text, {("bases", "a"): NEW}, "a.yaml")


def test_a_wrong_call_is_one_line(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    done = resolve(config, folder, "--move")
    assert (done.returncode, done.stderr) == (1, "error: --move changes the config; add --write\n")
    config.write_text(CONFIG.replace(OTHER, "main"))
    done = resolve(config, folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {config}: benchmarks.words.revision: 'main' is not a commit hash")
