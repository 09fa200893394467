"""Nothing that a config says becomes a command, or takes a protection away: hostile text in every string and key."""

import copy
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergetime.config.reading import parse
from mergetime.core.errors import UserError
from mergetime.workflow.grid import Grid
from tests.workflow.conftest import ROOT, run_in

HOSTILE = (
    "$(touch seen)",
    "`touch seen`",
    "; touch seen #",
    "'; touch seen #",
    '"; touch seen #',
    "\ntouch seen\n",
    "../..",
)
Place = tuple[str | int, ...]


def everything() -> dict[str, Any]:
    """The smoke study with every section that a config may have."""
    study: dict[str, Any] = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    recipe = {name: study["experts"].pop(name) for name in ("train", "durations")}
    stopped = {
        "train": {**recipe["train"], "mode": "lora"},
        "durations": {"early_stopping": {"v0": {"every": 8, "patience": 2}}},
    }
    study["experts"]["recipes"] = {"default": recipe, "stopped": stopped}
    study["pools"]["stopped"] = {"experts": ["multilingual", "safety"], "recipe": "stopped", "at": "v0"}
    study["hub"]["endpoint"] = "https://huggingface.co"
    study["claims"] = "config/papers/duration/claims.yaml"
    study["bases"]["qwen3.5-demo"] |= {"family": "qwen", "tuning": "pretrained", "modality": "causal_lm"}
    study["domains"]["safety"] |= {"split": "train"}
    study["judges"] = {"guard": {"model": "o/guard", "revision": "0123456789" * 4}}
    study["benchmarks"]["requests"]["judge"] = "guard"
    study["benchmarks"]["languages"] = study["benchmarks"]["locales"] | {"task": "x_{config}", "config": ["de", "fr"]}
    study["suites"]["more"] = {"multilingual": ["locales", "requests"]}
    study["methods"]["weighted"] = {
        "method": "ties",
        "preset": "mergekit",
        "weights": {"multilingual": 0.4, "safety": 0.6},
        "pools": ["same_duration"],
    }
    study["statistics"] = {"examples": 8, "fisher": {"draws": 2}}
    study["plan"] = {"gpu": "H100 80GB"}
    study["experts"]["imported"]["polite"]["trained_on"] = "/models/polite"
    return study


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """The way to every string of a config; one that ends in a key twice is to the key itself."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield (*above, key, key)
            yield from places(below, (*above, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from places(below, (*above, number))
    elif isinstance(value, str):
        yield above


def changed(study: dict[str, Any], place: Place, text: str) -> dict[str, Any]:
    """The config with ``text`` behind what stands at a place."""
    other = copy.deepcopy(study)
    *above, last = place
    at: Any = other
    is_key = len(place) > 1 and place[-1] == place[-2]
    for step in above[:-1] if is_key else above:
        at = at[step]
    if is_key:
        at[f"{last}{text}"] = at.pop(last)
    else:
        at[last] = f"{at[last]}{text}"
    return other


def accepted(study: dict[str, Any]) -> list[Place]:
    """The places at which hostile text is not refused."""
    taken = []
    for place, text in itertools.product(places(study), HOSTILE):
        try:
            Grid.of(parse(changed(study, place, text), "c.yaml"))
        except (UserError, ValueError):
            continue
        taken.append(place)
    return taken


def test_a_config_with_every_section_is_valid_before_it_is_hostile() -> None:
    Grid.of(parse(everything(), "c.yaml"))


@pytest.mark.parametrize("sandbox", ["required", "none"])
def test_a_config_alone_does_not_switch_off_the_sandbox(
    clone: Path, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = yaml.safe_load((clone / "config/smoke.yaml").read_text())
    study["evaluation"]["sandbox"] = sandbox
    (clone / "config/other.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    monkeypatch.delenv("MERGETIME_SANDBOX", raising=False)
    refused = run_in(clone, "-n", "--configfile", "config/other.yaml")
    said = refused.stdout.splitlines()[-1].startswith("error: config/other.yaml: evaluation.sandbox: none lets")
    assert (refused.returncode, said) == ((1, True) if sandbox == "none" else (0, False))
    # Jobs are told, whatever the environment says: the program in Python's place writes it down, and makes nothing.
    (clone / "bin").mkdir()
    (clone / "bin/python").write_text('#!/bin/sh\necho "$MERGETIME_SANDBOX" > told\n')
    (clone / "bin/python").chmod(0o755)
    monkeypatch.setenv("MERGETIME_SANDBOX", "none")
    monkeypatch.setenv("PATH", f"{clone}/bin:{os.environ['PATH']}")
    run_in(clone, "all", "--configfile", "config/other.yaml")
    assert (clone / "told").read_text() == f"{sandbox}\n"


def test_hostile_text_is_refused_wherever_it_stands() -> None:
    assert not accepted(everything())
