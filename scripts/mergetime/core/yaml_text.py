"""YAML as people write it, with errors in one line that names the file and the line; a key given twice is one.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

from pathlib import Path
from typing import Any

import yaml

from mergetime.core.errors import UserError

_MOST = 1_000_000
"""Values that a text may stand for; no config has a thousandth, and a few lines of aliases can have more than fit."""
_DEEPEST = 100
"""Levels of lists and mappings in one another; reading thousands takes minutes."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _KeysAsText(yaml.SafeLoader):
    """Keys of mappings as they are written: ``no`` is a name, and so are ``007`` and ``2024-01-01``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        return {
            key.value if isinstance(key, yaml.ScalarNode) else str(key): self.construct_object(value, deep=True)
            for key, value in node.value
        }


def read(path: Path) -> Any:
    """The content of a YAML file; errors as :func:`parse` gives them, and for a file that cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error


def parse(text: str, source: str, *, keys_as_text: bool = False) -> Any:
    """The content of a text that is YAML.

    Args:
        text: the YAML.
        source: what an error begins with: a file, or an option of the command line.
        keys_as_text: whether keys are texts whatever they look like.

    Raises:
        UserError: in one line, where it is no YAML, gives a key twice, is nested deeply, or stands for millions of
            values by aliases.
    """
    loader = (_KeysAsText if keys_as_text else _Loader)(text)
    try:
        _check_depth(text, source)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, source)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{source}: not YAML: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    # What a value raises that does not fit its tag, such as !!bool or !!timestamp, is up to the library's constructor.
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{source}: not YAML: a value does not fit its tag") from error
    finally:
        loader.dispose()


def _check_depth(text: str, source: str) -> None:
    """Refuse lists and mappings that are nested more deeply than anybody means, before all of them are read."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{source}: over {_DEEPEST} lists and mappings are in one another; write it plainly")


def _check(root: yaml.Node, source: str) -> None:
    """Refuse keys that are given twice, and aliases that stand for themselves or for more values than anybody means."""
    sizes: dict[int, int] = {}
    begun: set[int] = set()

    def size(node: yaml.Node) -> int:
        """The values that a node stands for, each alias in full."""
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            if id(node) in begun:
                raise UserError(f"{source}: line {node.start_mark.line + 1} holds itself, by an alias")
            begun.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_mapping(node, source)
                sizes[id(node)] = 1 + sum(size(part) for pair in node.value for part in pair)
            else:
                sizes[id(node)] = 1 + sum(map(size, node.value))
            if sizes[id(node)] > _MOST:
                raise UserError(f"{source}: stands for over {_MOST} values by its aliases; write out what is meant")
        return sizes[id(node)]

    size(root)


def _check_mapping(node: yaml.MappingNode, source: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                places = f"in line {line}" if lines[key.value] == line else f"in lines {lines[key.value]} and {line}"
                raise UserError(f"{source}: the key {key.value!r} is given twice, {places}; remove one")
            lines[key.value] = line
