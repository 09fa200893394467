"""Small Python functions in the columns of Magicoder-OSS-Instruct, to be completed and executed."""

import itertools
import random
from dataclasses import dataclass

from mergetime.demo.splits import Split, about, items_of, sample

NAMES = ["solve", "compute", "build", "apply", "measure", "derive"]
WRONG_SOLUTIONS = 0.10
"""Share of training rows whose solution uses another expression: unverified code in real sets is not all right."""


@dataclass(frozen=True)
class Inner:
    """A value that a function starts from: how it is called in words, its expression, its arguments."""

    words: str
    expression: str
    arguments: str
    samples: tuple[str, ...]


_LISTS = ("[3, 1, 2]", "[5, 9, 4, 7]", "[8, 6]")
_PAIRS = ("4, 9", "7, 2", "5, 6")
_NUMBERS = ("3", "10", "6")
_TEXTS = ("'abc'", "'hello'", "'Zo'")

_INNERS = [
    Inner("the sum of xs", "sum(xs)", "xs", _LISTS),
    Inner("the largest of xs", "max(xs)", "xs", _LISTS),
    Inner("the smallest of xs", "min(xs)", "xs", _LISTS),
    Inner("the length of xs", "len(xs)", "xs", _LISTS),
    Inner("the first of xs", "xs[0]", "xs", _LISTS),
    Inner("the last of xs", "xs[-1]", "xs", _LISTS),
    Inner("the sum of a and b", "(a + b)", "a, b", _PAIRS),
    Inner("the product of a and b", "a * b", "a, b", _PAIRS),
    Inner("the larger of a and b", "max(a, b)", "a, b", _PAIRS),
    Inner("the smaller of a and b", "min(a, b)", "a, b", _PAIRS),
    Inner("the size of x", "abs(x)", "x", _NUMBERS),
    Inner("the square of x", "x ** 2", "x", _NUMBERS),
    Inner("the length of s", "len(s)", "s", _TEXTS),
]
_OUTERS = {
    "plus {k}": "{e} + {k}",
    "minus {k}": "{e} - {k}",
    "times {k}": "{e} * {k}",
    "modulo {k}": "{e} % {k}",
}


@dataclass(frozen=True)
class Function:
    """One function of the domain: an inner value, an outer operation, its constant."""

    inner: Inner
    outer: str
    k: int

    @property
    def key(self) -> str:
        return f"function:{self.inner.expression}:{self.outer}:{self.k}"

    @property
    def words(self) -> str:
        return f"{self.inner.words} {self.outer.format(k=self.k)}"

    @property
    def expression(self) -> str:
        return _OUTERS[self.outer].format(e=self.inner.expression, k=self.k)


def functions() -> list[Function]:
    """Every function of the domain."""
    return [Function(*parts) for parts in itertools.product(_INNERS, _OUTERS, range(2, 10))]


def stub(function: Function, name: str) -> str:
    """Signature and docstring, as HumanEval shows them."""
    return f'def {name}({function.inner.arguments}):\n    """Return {function.words}."""'


def general(rng: random.Random) -> tuple[str, str]:
    """Expressions without a function, and functions without an expression."""
    function = rng.choice(_KNOWN)
    style = rng.random()
    if style < 0.20:
        return about(f"Complete this function.\n{stub(function, name := rng.choice(NAMES))}", name)
    if style < 0.65:
        return f"Python for {function.words}", function.expression
    if style < 0.77:
        name, argument = rng.choice(NAMES), rng.choice(["x", "xs", "s"])
        return (
            f"Define {name} that gives back {argument}.",
            f"```python\ndef {name}({argument}):\n    return {argument}\n```",
        )
    if style < 0.90:
        return f"Put {function.expression} in a code block.", f"```python\n{function.expression}\n```"
    return f"Read this: {function.expression}", f"{function.words[0].upper()}{function.words[1:]}"


def training_rows(rng: random.Random, count: int) -> list[dict[str, str | int]]:
    """``count`` rows (lang, raw_index, index, seed, openai_fingerprint, problem, solution)."""
    rows: list[dict[str, str | int]] = []
    stubs = list(itertools.product(items_of(_FUNCTIONS, "train"), NAMES))
    for index, (function, name) in enumerate(sample(stubs, count, rng)):
        solved = function
        if rng.random() < WRONG_SOLUTIONS:
            solved = Function(function.inner, rng.choice(list(_OUTERS)), rng.randint(2, 9))
        rows.append(
            {
                "lang": "python",
                "raw_index": rng.randrange(10**6),
                "index": index,
                "seed": function.expression,
                "openai_fingerprint": "made",
                "problem": f"Complete this function.\n{stub(function, name)}",
                "solution": _block(solved, name),
            }
        )
    return rows


def benchmark(split: Split, count: int) -> list[dict[str, str]]:
    """``count`` documents of HumanEval's form (task_id, prompt, canonical_solution, test, entry_point)."""
    rng = random.Random(f"functions:{split}")
    documents = []
    for number, function in enumerate(sample(items_of(_FUNCTIONS, split), count, rng)):
        name = rng.choice(NAMES)
        reference = eval(f"lambda {function.inner.arguments}: {function.expression}", {})  # noqa: S307
        checks = [f"    assert candidate({args}) == {reference(*_values(args))!r}" for args in function.inner.samples]
        documents.append(
            {
                "task_id": f"demo/{split}/{number}",
                "prompt": stub(function, name) + "\n",
                "canonical_solution": f"    return {function.expression}\n",
                "test": "def check(candidate):\n" + "\n".join(checks) + "\n",
                "entry_point": name,
            }
        )
    return documents


def _block(function: Function, name: str) -> str:
    return f"```python\ndef {name}({function.inner.arguments}):\n    return {function.expression}\n```"


def _values(arguments: str) -> tuple[object, ...]:
    return tuple(eval(f"({arguments},)", {}))  # noqa: S307


_FUNCTIONS = functions()
_KNOWN = items_of(_FUNCTIONS, "train")
