"""YAML of configs and options: what is refused, in which line, and how names are read."""

import re
from pathlib import Path

import pytest

from mergetime.config.reading import parse as parse_study
from mergetime.core import yaml_text
from mergetime.core.errors import UserError
from mergetime.merging import registry

BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 30))]
)
"""Each line stands for ten times as much as the one before."""
MERGED = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{level}: &a{level} {{<<: [*a{level - 1}, *a{level - 1}]}}" for level in range(1, 40))]
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", r"c: not YAML: .* in line 2"),
        ("a: 1\n\tb: 2", r"c: not YAML: .* in line 2"),
        ("@x", r"c: not YAML: .* in line 1"),
        ("!!bool x", r"c: not YAML: a value does not fit its tag"),
        ("!!int ''", r"c: not YAML: a value does not fit its tag"),
        ("!!timestamp x", r"c: not YAML: a value does not fit its tag"),
        ("!!python/object:os.system {}", r"c: not YAML: could not determine a constructor .* in line 1"),
        ("? [a]\n: 1", r"c: not YAML: found unhashable key in line 1"),
        ("a: 1\nb: &b [*b]", r"c: line 2 holds itself, by an alias"),
        (BOMB, r"c: stands for over 1000000 values by its aliases; write out what is meant"),
        (MERGED, r"c: stands for over 1000000 values by its aliases; write out what is meant"),
        ("a: 1\nb: 2\na: 3", "c: the key 'a' is given twice, in lines 1 and 3; remove one"),
        ("a:\n  - {b: 1, b: 2}", "c: the key 'b' is given twice, in line 2; remove one"),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2, b: 3}", "c: the key 'b' is given twice, in line 2; remove one"),
    ],
)
def test_what_is_refused(text: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        yaml_text.parse(text, "c")
    assert re.fullmatch(line, str(refused.value))


@pytest.mark.parametrize("text", ['{"a":' * 200_000, "[" * 200_000, "- " * 100_000])
def test_deep_nesting_is_refused_before_it_is_read(text: str) -> None:
    with pytest.raises(UserError, match=r"c.yaml: over 100 lists and mappings are in one another; write it plainly"):
        yaml_text.parse(text, "c.yaml")
    assert yaml_text.parse("[" * 100 + "]" * 100, "c.yaml")


def test_anchors_and_merges_are_read_as_yaml_has_them() -> None:
    text = "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: [*x, *x]"
    content = yaml_text.parse(text, "c")
    assert content == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": [{"b": 1, "c": 2}] * 2}


def test_keys_are_names_where_names_are_expected() -> None:
    text = "{no: 0.5, 007: 1, 2024-01-01: {on: yes}}"
    assert yaml_text.parse(text, "c", keys_as_text=True) == {"no": 0.5, "007": 1, "2024-01-01": {"on": True}}


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), (b"# caf\xe9", "not in UTF-8")])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"c\.yaml: {said}"):
        yaml_text.read(file)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"study": 1}, "c: study: 1 is no text; put it in quotes"),
        ({"study": None}, "c: study: is empty"),
        ({"domains": {False: {}}}, "c: domains: the key False is no text to YAML; put it in quotes"),
        ({"suites": {"test": [{7: 1}]}}, "c: suites.test.0: the key 7 is no text to YAML; put it in quotes"),
    ],
)
def test_what_yaml_takes_for_something_else_is_said(data: object, line: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_study(data, "c")
    assert line in str(refused.value)


@pytest.mark.parametrize(("text", "number"), [("1e-1", 0.1), ("5E-1", 0.5), (".5e0", 0.5), ("1.e0", 1.0)])
def test_numbers_with_an_exponent_are_numbers(text: str, number: float) -> None:
    params = registry.get("ties").validate({"density": yaml_text.parse(text, "--set density")})
    assert params["density"] == number


@pytest.mark.parametrize("text", ["e1", "1e", "1e1.5", "nan", "'1'"])
def test_other_texts_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"density: .* is not a number"):
        registry.get("ties").validate({"density": yaml_text.parse(text, "--set density")})
