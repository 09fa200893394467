"""What is made from the lock is fresh, and the run's summary reads what Snakemake writes."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_conda_file_is_made_from_the_lock() -> None:
    maker = script("make_conda_file")
    pins = maker.pins_of(ROOT / "envs/torch.txt", ROOT / "envs/requirements.lock")
    assert (ROOT / "envs/mergetime.yaml").read_text() == maker.conda_file(pins), "run: make lock"


def test_the_lock_holds_what_is_required() -> None:
    maker = script("make_conda_file")
    locked = set(maker.pins_of(ROOT / "envs/torch.txt", ROOT / "envs/requirements.lock"))
    wanted = {
        pin.replace("[ifeval]", "") for pin in maker.pins_of(ROOT / "envs/requirements.in", ROOT / "envs/torch.txt")
    }
    assert wanted <= {pin.replace("[ifeval]", "") for pin in locked}


def test_the_lock_for_gpus_adds_to_the_other_what_is_required() -> None:
    maker = script("make_conda_file")
    added = maker.pins_of(ROOT / "envs/gpu.lock")
    assert added == maker.pins_of(ROOT / "envs/gpu.in"), "run: make lock"
    assert not {name_of(pin) for pin in added} & {
        name_of(pin) for pin in maker.pins_of(ROOT / "envs/torch.txt", ROOT / "envs/requirements.lock")
    }


def name_of(pin: str) -> str:
    return pin.split("==")[0]


def test_times_are_summed_by_rule(tmp_path: Path) -> None:
    for name, seconds in (
        ("merge/a/1.jsonl", 2.0), ("merge/a/2.jsonl", 4.0), ("judge_merged_0/b/test.jsonl", 2.0),
        ("judge_merged_12/b/test.jsonl", 1.0), ("collect.jsonl", 1.0),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        line = {"s": seconds, "max_rss": "NA" if name == "collect.jsonl" else 100.0}
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    rows = script("summarize_run").times([tmp_path]).splitlines()
    assert rows[2:] == [
        "| merge | 2 | 6.0 | 3.0 | 100 |",
        "| judge_merged | 2 | 3.0 | 1.5 | 100 |",
        "| collect | 1 | 1.0 | 1.0 | 0 |",
        "| all | 5 | 10.0 | | |",
    ]
