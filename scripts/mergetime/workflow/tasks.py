"""Which files of a folder of lm-eval tasks a task is made of."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

_FUNCTION = "!function"


class _Loader(yaml.SafeLoader):
    """YAML in which ``!function module.name`` is the file of the module."""


def _function(loader: _Loader, node: yaml.ScalarNode) -> Path:
    return Path(loader.name).parent / f"{str(loader.construct_scalar(node)).rpartition('.')[0]}.py"


_Loader.add_constructor(_FUNCTION, _function)


def files_of_tasks(folder: Path, tasks: Iterable[str]) -> set[Path]:
    """The files that define these tasks: their YAML, what that includes, and the Python that it names.

    A task may be named by a group or a tag that it is in. Tasks that are not in the folder are lm-eval's own, and
    nothing of them is here.

    Raises:
        ValueError: naming a file that is not YAML.
    """
    contents = {file: _read(file) for file in sorted(folder.resolve().rglob("*.yaml"))}
    pending, names, files = list(tasks), set[str](), set[Path]()
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names.add(name)
        for file, content in contents.items():
            if name in _names(content):
                files |= _parts(file, contents)
                pending += _members(content)
    return files


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open() as stream:
            content = yaml.load(stream, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    return content if isinstance(content, dict) else {}


def _names(content: dict[str, Any]) -> set[str]:
    """What the file can be asked for by."""
    tags = content.get("tag") or []
    named = [content.get("task"), content.get("group"), *(tags if isinstance(tags, list) else [tags])]
    return {name for name in named if isinstance(name, str)}


def _members(content: dict[str, Any]) -> list[str]:
    """The tasks of a group."""
    listed = content.get("task")
    members = [member.get("task") if isinstance(member, dict) else member for member in listed or ()]
    return [str(member) for member in members] if isinstance(listed, list) else []


def _parts(file: Path, contents: dict[Path, dict[str, Any]]) -> set[Path]:
    """The file, those that it includes, and the modules of their functions."""
    content = contents.get(file) or _read(file)
    files = {file, *_modules(content)}
    included = content.get("include")
    return files | _parts((file.parent / included).resolve(), contents) if isinstance(included, str) else files


def _modules(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _modules(part)
    elif isinstance(value, list):
        for part in value:
            yield from _modules(part)
