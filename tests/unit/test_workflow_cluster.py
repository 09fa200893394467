"""What SLURM's answers are taken for; what a real cluster does is in tests/cluster."""

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mergetime.core.errors import UserError
from mergetime.workflow import cluster

RULES = ["train_expert", "evaluate_expert_0"]


class Slurm:
    """squeue and scancel, by what is put into ``answers``: lines, or an error."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[list[str] | Exception] = []
        self.commands: list[list[str]] = []

    def line(self, number: int, state: str, left: str, comment: str, folder: Path | None = None) -> str:
        return f"{number}|{state}|{left}|{folder or self.folder}|{comment}  "

    def run(self, command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        self.commands.append(command)
        if command[0] == "scancel":
            return subprocess.CompletedProcess(command, 0, "")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, "\n".join(answer) + "\n" if answer else "")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    monkeypatch.chdir(tmp_path)
    stand_in = Slurm(tmp_path)
    monkeypatch.setattr("subprocess.run", stand_in.run)
    monkeypatch.setattr("time.sleep", lambda _: None)
    cluster.ran_out_of.cache_clear()
    yield stand_in
    cluster.ran_out_of.cache_clear()


@pytest.mark.parametrize(
    ("left", "expected"),
    [("30", 30), ("2:05", 125), ("1:00:00", 3600), ("2-01:00:00", 176_400), ("UNLIMITED", math.inf), ("", math.inf)],
)
def test_what_is_left_of_a_jobs_time(left: str, expected: float) -> None:
    assert cluster.seconds(left) == expected


def test_jobs_of_other_folders_and_rules_are_not_ours(slurm: Slurm, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    slurm.answers = [
        [
            slurm.line(1, "RUNNING", "1:00", "rule_train_expert_wildcards_b_math_1"),
            slurm.line(2, "RUNNING", "1:00", "rule_train_expert_wildcards_b_math_1", tmp_path.parent),
            slurm.line(3, "PENDING", "1:00", "rule_train_expert_too_wildcards_b"),
            slurm.line(4, "RUNNING", "1:00", "rule_evaluate_expert_0"),
            slurm.line(5, "RUNNING", "1:00", "somebody's own | job"),
            slurm.line(6, "RUNNING", "1:00", "rule_train_expert_wildcards_b_code_1", link),
        ]
    ]
    jobs = cluster.jobs_of_this_folder()
    assert [job.number for job in jobs] == ["1", "3", "4", "5", "6"]
    assert jobs[3].comment == "somebody's own | job"
    assert cluster.jobs_of_rules(jobs, RULES) == ["1", "4", "6"]
    assert cluster.jobs_of_rules(jobs, []) == []


def test_jobs_of_an_earlier_run_are_cancelled_and_waited_for(slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    left = [slurm.line(7, "RUNNING", "1:00", "rule_train_expert")]
    slurm.answers = [left, left, []]
    cluster.cancel_jobs_of_earlier_runs(iter(RULES))
    assert [command[0] for command in slurm.commands] == ["squeue", "scancel", "squeue", "squeue"]
    assert slurm.commands[1] == ["scancel", "7"]
    assert capsys.readouterr().err == "Cancelling jobs of an earlier run: 7\n"


def test_nothing_is_cancelled_where_nothing_is_left(slurm: Slurm) -> None:
    slurm.answers = [[]]
    cluster.cancel_jobs_of_earlier_runs(RULES)
    assert [command[0] for command in slurm.commands] == ["squeue"]


def test_jobs_that_do_not_end_are_named(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CANCEL_WITHIN_S", -1)
    left = [slurm.line(7, "COMPLETING", "1:00", "rule_train_expert")]
    slurm.answers = [left, left]
    with pytest.raises(UserError, match=r"^jobs of an earlier run do not end: 7$"):
        cluster.cancel_jobs_of_earlier_runs(RULES)


TRAIN = ("train_expert", ("b", "math/x", "1"))
COMMENT = "rule_train_expert_wildcards_b_math_x_1"


@pytest.mark.parametrize(
    ("state", "left", "log", "expected"),
    [
        ("OUT_OF_MEMORY", "1:00:00", "", {"memory"}),
        ("FAILED", "1:00:00", "slurmstepd-x: error: Detected 1 oom_kill event in StepId=7.0", {"memory"}),
        ("FAILED", "1:00:00", "slurmstepd: error: Job 7 exceeded memory limit, being killed", {"memory"}),
        ("FAILED", "1:00:00", "KeyError: memory limit", set()),
        ("TIMEOUT", "0:00", "", {"time"}),
        # It was warned, wrote its checkpoint and ended.
        ("FAILED", "4:30", "", {"time"}),
        ("FAILED", "1:00:00", "", set()),
        ("NODE_FAIL", "4:30", "", set()),
    ],
)
def test_what_an_attempt_ran_out_of(slurm: Slurm, state: str, left: str, log: str, expected: set[str]) -> None:
    # The newest job is asked about, by number and not by place.
    slurm.answers = [[slurm.line(7, state, left, COMMENT), slurm.line(6, "TIMEOUT", "0:00", COMMENT)]]
    if log:
        file = slurm.folder / "logs/slurm/rule_train_expert/b_math_x_1/7.log"
        file.parent.mkdir(parents=True)
        file.write_text(f"Building DAG\n{log}\n")
    assert cluster.ran_out_of(*TRAIN, 1) == expected
    assert cluster.ran_out_of(*TRAIN, 1) == expected
    assert len(slurm.commands) == 1, "kept, since SLURM forgets"


def test_a_rule_that_is_not_warned_did_not_stop_in_time(slurm: Slurm) -> None:
    slurm.answers = [[slurm.line(7, "FAILED", "4:30", "rule_evaluate_expert_0")]]
    assert cluster.ran_out_of("evaluate_expert_0", (), 1) == set()


@pytest.mark.parametrize("answer", [FileNotFoundError("squeue"), subprocess.TimeoutExpired("squeue", 60), []])
def test_both_grow_where_slurm_does_not_say(slurm: Slurm, answer: Any) -> None:
    slurm.answers = [answer]
    assert cluster.ran_out_of(*TRAIN, 1) == {"memory", "time"}


def test_an_attempt_asks_for_more_of_what_those_before_ran_out_of(slurm: Slurm) -> None:
    assert cluster.shares(*TRAIN, 1) == (1, 1)
    slurm.answers = [[slurm.line(7, "TIMEOUT", "0:00", COMMENT)]]
    assert cluster.shares(*TRAIN, 2) == (1, 2)
    slurm.answers = [[slurm.line(8, "OUT_OF_MEMORY", "9:00", COMMENT)]]
    assert cluster.shares(*TRAIN, 3) == (2, 2)
    slurm.answers = [[slurm.line(9, "NODE_FAIL", "9:00", COMMENT)]]
    assert cluster.shares(*TRAIN, 4) == (2, 2)
