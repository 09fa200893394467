"""YAML as people write it, with errors in one line that names the file and the line; a key given twice is one.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

from pathlib import Path
from typing import Any

import yaml

from mergetime.core.errors import UserError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _KeysAsText(yaml.SafeLoader):
    """Keys of mappings as they are written: ``no`` is a name, and so are ``007`` and ``2024-01-01``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {
            key.value if isinstance(key, yaml.ScalarNode) else str(key): self.construct_object(value, deep=True)
            for key, value in node.value
        }


def parse(text: str, source: str, *, keys_as_text: bool = False) -> Any:
    """The content of a text that is YAML.

    Args:
        text: the YAML.
        source: what an error begins with: a file, or an option of the command line.
        keys_as_text: whether keys are texts whatever they look like.

    Raises:
        UserError: in one line, where it is no YAML or gives a key twice.
    """
    check_keys(text, source)
    try:
        return yaml.load(text, _KeysAsText if keys_as_text else yaml.SafeLoader)
    # What a tag such as !!bool or !!timestamp does not fit raises whatever the library's constructor meets.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{source}: not YAML: a value does not fit its tag, or a key is no text") from error


def read(path: Path) -> Any:
    """The content of a YAML file; errors as :func:`parse` gives them, and for a file that cannot be read."""
    return parse(_text(path), str(path))


def check_file(path: Path) -> None:
    """Refuse a file that :func:`read` refuses; whoever loaded it before may have taken the last of two equal keys."""
    check_keys(_text(path), str(path))


def check_keys(text: str, source: str) -> None:
    """Refuse a text that is no YAML, or gives a key of a mapping twice.

    Raises:
        UserError: in one line that names the key and the line.
    """
    try:
        nodes = [yaml.compose(text, Loader=_Loader)]
        # What an anchor names is there once, however often it is used.
        seen: set[int] = set()
        while nodes:
            node = nodes.pop()
            if id(node) in seen or not isinstance(node, yaml.CollectionNode):
                continue
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_mapping(node, source)
                nodes.extend(part for pair in node.value for part in pair)
            else:
                nodes.extend(node.value)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}: not YAML: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def _check_mapping(node: yaml.MappingNode, source: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                places = f"in line {line}" if lines[key.value] == line else f"in lines {lines[key.value]} and {line}"
                raise UserError(f"{source}: the key {key.value!r} is given twice, {places}; remove one")
            lines[key.value] = line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
