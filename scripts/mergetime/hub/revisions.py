"""The commits that a config pins, beside those that the hub has; and writing them into the config's text."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from mergetime.config.fields import UNRESOLVED
from mergetime.config.study import Study
from mergetime.core.errors import UserError

Kind = Literal["model", "dataset"]
Status = Literal["same", "moved", "new", "gone", "gated"]


@dataclass(frozen=True)
class Pin:
    """A key of the config with the repository and the commit that it names."""

    key: tuple[str, ...]
    kind: Kind
    name: str
    revision: str


@dataclass(frozen=True)
class Answer:
    """The commit of a repository's main branch, or why the hub did not say it."""

    commit: str | None
    refusal: Literal["gone", "gated"] | None = None


@dataclass(frozen=True)
class Comparison:
    """A pin beside the hub's answer."""

    pin: Pin
    answer: Answer

    @property
    def status(self) -> Status:
        """How the two differ; ``new`` where the config has no commit yet."""
        if self.answer.refusal:
            return self.answer.refusal
        if self.pin.revision == UNRESOLVED:
            return "new"
        return "same" if self.pin.revision == self.answer.commit else "moved"


def pins(study: Study) -> list[Pin]:
    """Every commit that a study pins, in the order of the config's sections."""
    return [
        *(Pin(("bases", name), "model", base.model, base.revision) for name, base in study.bases.items()),
        *(Pin(("domains", name), "dataset", domain.dataset, domain.revision) for name, domain in study.domains.items()),
        *(
            Pin(("experts", "imported", name), "model", expert.model, expert.revision)
            for name, expert in study.experts.imported.items()
        ),
        *(
            Pin(("benchmarks", name), "dataset", benchmark.dataset, benchmark.revision)
            for name, benchmark in study.benchmarks.items()
        ),
        *(Pin(("judges", name), "model", judge.model, judge.revision) for name, judge in study.judges.items()),
    ]


def compare(wanted: Iterable[Pin], ask: Callable[[Kind, str], Answer]) -> list[Comparison]:
    """Each pin beside what ``ask`` says of its repository, which is asked once."""
    answers: dict[tuple[Kind, str], Answer] = {}
    comparisons = []
    for pin in wanted:
        repository = (pin.kind, pin.name)
        if repository not in answers:
            answers[repository] = ask(*repository)
        comparisons.append(Comparison(pin, answers[repository]))
    return comparisons


def replaced(text: str, commits: Mapping[tuple[str, ...], str], source: str) -> str:
    """A config's text with other commits under ``revision`` of these keys; nothing else of it changes.

    Raises:
        UserError: naming a key whose commit cannot be changed alone: it is shared through an anchor, say.
    """
    root, wanted = yaml.compose(text), yaml.safe_load(text)
    edits: dict[int, tuple[int, str]] = {}
    for key, commit in commits.items():
        node = _value(root, (*key, "revision"))
        if node is None or text[node.start_mark.index : node.end_mark.index].strip("'\"") != node.value:
            raise UserError(f"{source}: {'.'.join(key)}: write its revision as plain text of its own, then run again")
        quoted = commit if yaml.safe_load(commit) == commit else f'"{commit}"'
        edits[node.start_mark.index] = (node.end_mark.index, quoted)
    for start, (end, commit) in sorted(edits.items(), reverse=True):
        text = text[:start] + commit + text[end:]
    for key, commit in commits.items():
        wanted = _with(wanted, (*key, "revision"), commit)
    if yaml.safe_load(text) != wanted:
        keys = ", ".join(".".join(key) for key in commits)
        raise UserError(f"{source}: {keys}: cannot be changed without changing other keys too; change them by hand")
    return text


def _with(data: Any, key: tuple[str, ...], value: str) -> Any:
    """A copy of nested mappings with another value under one path of keys; parts that are shared stay as they were."""
    return {**data, key[0]: _with(data[key[0]], key[1:], value)} if key else value


def _value(node: Any, key: tuple[str, ...]) -> yaml.ScalarNode | None:
    """The scalar under a path of keys."""
    for part in key:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == part), None)
    return node if isinstance(node, yaml.ScalarNode) else None
