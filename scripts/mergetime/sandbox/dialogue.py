"""The two sides of a generated program: one process runs it, the other its tests, and plain values go between them.

Standard library only: it is part of the server that :mod:`mergetime.sandbox.programs` starts. What is said is one line
of JSON each: ``{"value": null}`` once the program ran to its last line, then for each ``{"call": NAME, "arguments":
[ARGS, KWARGS]}`` a ``{"value": VALUE}``, with ``"changed": [ARGS, KWARGS]`` if the function changed what it was given;
``{"raised": CLASS, "text": TEXT}`` in place of a value for an exception.
"""

import builtins
import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

from mergetime.sandbox import plain

LOST = "lost"
"""How tests end whose program's process ended, or said what no program says by itself."""
_ENDS_OF_ITERATION = ("StopIteration", "StopAsyncIteration")
_LONGEST_NAME, _LONGEST_TEXT = 100, 1000


def answer(source: str, requests: int, replies: int) -> None:
    """Run a program, then those of its functions that are asked for on the descriptor ``requests``, until it closes."""
    # Bound here, because the program may replace them in their module.
    loads, dumps = json.loads, json.dumps
    with open(requests, "rb") as asked, open(replies, "wb") as answers:
        namespace: dict[str, Any] = {"__name__": "__main__"}

        def run() -> dict[str, Any]:
            exec(compile(source, "<program>", "exec"), namespace)  # noqa: S102
            return {"value": None}

        def call() -> dict[str, Any]:
            return _called(namespace, loads(line))

        def say(function: Callable[[], dict[str, Any]]) -> None:
            try:
                said = dumps(_outcome(function)).encode()
            except BaseException as error:  # a value may be too large or too deep to be written down
                said = dumps(_raised(error)).encode()
            answers.write(said + b"\n")
            answers.flush()

        say(run)
        while line := asked.readline():
            say(call)


def test(tests: str, entry_point: str | None, replies: int, requests: int) -> str:
    """Run tests in which ``entry_point`` stands for the program's function of that name.

    Returns:
        ``passed`` if they reach their last line, ``failed: <name of the exception>``, also of one that the program
        ends with before the tests begin, or :data:`LOST`.
    """
    program = _Program(replies, requests)
    functions = {entry_point: program.function(entry_point)} if entry_point else {}
    reason = "passed"
    try:
        program.answered()
        exec(compile(tests, "<tests>", "exec"), {"__name__": "__tests__", **functions})  # noqa: S102
    except BaseException as error:  # SystemExit is a failure like any other
        reason = f"failed: {_name_of(error)}"
    return LOST if program.lost else reason


def rehearse() -> None:
    """Both sides of a program that is known, one after the other."""
    (asked, asking), (heard, saying) = os.pipe(), os.pipe()
    request = {"call": "function", "arguments": plain.written([[1, "text", [2.5]], {}])}
    os.write(asking, json.dumps(request).encode() + b"\n")
    os.close(asking)
    answer("def function(*values):\n    return list(values)", asked, saying)
    asked, asking = os.pipe()
    test("assert function(1, 'text', [2.5]) == [1, 'text', [2.5]]", "function", heard, asking)
    os.close(asked)


class _LostError(BaseException):
    """There is nobody to ask any more; tests that catch every exception of a function do not catch this."""


class _Program:
    """The process of a program, as its tests ask it; ``lost`` once it does not answer as a program does."""

    def __init__(self, replies: int, requests: int) -> None:
        self.answers, self.requests, self.lost = open(replies, "rb"), open(requests, "wb"), False  # noqa: SIM115

    def function(self, name: str) -> Callable[..., Any]:
        """What calls the program's function ``name``."""

        def candidate(*args: Any, **kwargs: Any) -> Any:
            request = {"call": name, "arguments": plain.written([args, kwargs])}
            try:
                self.requests.write(json.dumps(request).encode() + b"\n")
                self.requests.flush()
            except OSError as error:
                self.lost = True
                raise _LostError from error
            value, changed = self.answered()
            if changed is not None:
                for given, after in zip((args, kwargs.values()), (changed[0], changed[1].values()), strict=True):
                    for container, content in zip(given, after, strict=True):
                        plain.refill(container, content)
            return value

        return candidate

    def answered(self) -> tuple[Any, Any]:
        """The value that the program answers with, and what became of the arguments, None if nothing did.

        Raises:
            BaseException: the exception that the program answers with.
        """
        try:
            reply = json.loads(self.answers.readline())
            if "raised" not in reply:
                return plain.read(reply["value"]), plain.read(reply.get("changed"))
            raised = _exception(str(reply["raised"]), str(reply["text"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.lost = True
            raise _LostError from error
        raise raised


def _outcome(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a function returns, or its exception in the same words."""
    try:
        return function()
    except BaseException as error:
        return _raised(error)


def _raised(error: BaseException) -> dict[str, Any]:
    text = ""
    with contextlib.suppress(BaseException):
        text = str(error)[:_LONGEST_TEXT]
    return {"raised": _name_of(error), "text": text}


def _called(namespace: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Call a function of the program."""
    name, arguments = request["call"], request["arguments"]
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    args, kwargs = plain.read(arguments)
    reply = {"value": plain.written(namespace[name](*args, **kwargs))}
    with contextlib.suppress(TypeError):
        changed = plain.written([args, kwargs])
        if changed != arguments:
            reply["changed"] = changed
    return reply


def _exception(name: str, text: str) -> BaseException:
    """An exception of Python's by its name, else of a class without any meaning but its name.

    One that ends an iteration is a RuntimeError, as it is out of a generator: tests that map the function would end.
    """
    if name in _ENDS_OF_ITERATION:
        return RuntimeError(f"function raised {name}")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        with contextlib.suppress(TypeError):  # some take more than a text
            return kind(text)
    exception: BaseException = type(name, (Exception,), {})(text)
    return exception


def _name_of(error: BaseException) -> str:
    return "".join(character for character in type(error).__name__[:_LONGEST_NAME] if character.isprintable())
