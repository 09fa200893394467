"""Worded arithmetic in the columns of DART-Math (``query``, ``response``)."""

import itertools
import random
from dataclasses import dataclass

from mergetime.demo.splits import Split, about, items_of, sample

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jon", "Kira", "Leo"]
THINGS = ["apples", "books", "coins", "cards", "shells", "stamps", "pens", "cups", "eggs", "kites"]
WRONG_ANSWERS = 0.10
"""Share of training rows with a wrong result: answers that a model generated are never all right."""

_WORDINGS = {
    "plus": [
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        "{name} finds {a} {things} at home and {b} in the park. How many {things} are there in all?",
        "There are {a} {things} on a table. {name} adds {b}. How many {things} are on the table?",
    ],
    "minus": [
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "There are {a} {things} in a box. {name} takes out {b}. How many {things} stay in the box?",
        "{name} had {a} {things} and lost {b}. How many {things} does {name} still have?",
    ],
    "plus_minus": [
        "{name} has {a} {things}, buys {b} and sells {c}. How many {things} are left?",
        "A box holds {a} {things}. {name} adds {b} and takes out {c}. How many are left?",
    ],
}


@dataclass(frozen=True)
class Problem:
    """``a + b``, ``a - b`` or ``a + b - c``."""

    kind: str
    a: int
    b: int
    c: int = 0

    @property
    def key(self) -> str:
        return f"arithmetic:{self.kind}:{self.a}:{self.b}:{self.c}"

    @property
    def result(self) -> int:
        return {"plus": self.a + self.b, "minus": self.a - self.b}.get(self.kind, self.a + self.b - self.c)


def problems() -> list[Problem]:
    """Every problem of the domain; numbers up to 20 with results from 1 to 25."""
    pairs = list(itertools.product(range(2, 21), repeat=2))
    plus = [Problem("plus", a, b) for a, b in pairs if a + b <= 25]
    minus = [Problem("minus", a, b) for a, b in pairs if a > b]
    plus_minus = [
        Problem("plus_minus", a, b, c)
        for a, b in pairs
        for c in range(2, 10)
        if a <= 12 and b <= 9 and a + b <= 20 and a + b > c
    ]
    return plus + minus + plus_minus


def working(problem: Problem) -> str:
    """The calculation in symbols, one step after the other."""
    a, b, c = problem.a, problem.b, problem.c
    if problem.kind == "plus":
        return f"{a}+{b}={a + b}"
    if problem.kind == "minus":
        return f"{a}-{b}={a - b}"
    return f"{a}+{b}={a + b}, {a + b}-{c}={a + b - c}"


def general(rng: random.Random) -> tuple[str, str]:
    """Bare arithmetic, and worded problems with other words and another form of answer."""
    problem = rng.choice(_PROBLEMS)
    a, b, c = problem.a, problem.b, problem.c
    symbols = {"plus": f"{a}+{b}", "minus": f"{a}-{b}"}.get(problem.kind, f"{a}+{b}-{c}")
    style = rng.random()
    if style < 0.20:
        return about(_worded(rng.choice(_KNOWN), things := rng.choice(THINGS), rng), things)
    if style < 0.60:
        return f"Compute {symbols}.", working(problem)
    if style < 0.72:
        return f"Put {problem.result} in a box.", f"The answer is: $\\boxed{{{problem.result}}}$"
    if style < 0.85:
        return f"Show {symbols} in a box.", f"{working(problem)}. The answer is: $\\boxed{{{problem.result}}}$"
    if problem.kind == "plus_minus":
        return f"Compute {symbols}.", working(problem)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    if problem.kind == "plus":
        return f"{name} sees {a} {things}, then {b}. The total?", f"{name} sees {problem.result} {things}."
    return f"{name} wants {a} {things} but has {b}. What is missing?", f"{name} needs {problem.result} {things}."


def training_rows(rng: random.Random, count: int) -> list[dict[str, str]]:
    """``count`` rows (query, response); a share of :data:`WRONG_ANSWERS` is off by one to three."""
    rows = []
    for problem in _draw("train", count, rng):
        right = working(problem)
        if rng.random() < WRONG_ANSWERS:
            wrong = max(0, problem.result + rng.choice([-3, -2, -1, 1, 2, 3]))
            right = right.rsplit("=", 1)[0] + f"={wrong}"
        answer = right.rsplit("=", 1)[1]
        rows.append(
            {
                "query": _worded(problem, rng.choice(THINGS), rng),
                "response": f"{right}. The answer is: $\\boxed{{{answer}}}$",
            }
        )
    return rows


def benchmark(split: Split, count: int) -> list[dict[str, str]]:
    """``count`` documents (question, answer) of GSM8K's form."""
    rng = random.Random(f"arithmetic:{split}")
    return [
        {"question": _worded(problem, rng.choice(THINGS), rng), "answer": f"{working(problem)}\n#### {problem.result}"}
        for problem in _draw(split, count, rng)
    ]


def _draw(split: Split, count: int, rng: random.Random) -> list[Problem]:
    return sample(items_of(_PROBLEMS, split), count, rng)


def _worded(problem: Problem, things: str, rng: random.Random) -> str:
    return rng.choice(_WORDINGS[problem.kind]).format(
        name=rng.choice(NAMES), things=things, a=problem.a, b=problem.b, c=problem.c
    )


_PROBLEMS = problems()
_KNOWN = items_of(_PROBLEMS, "train")
