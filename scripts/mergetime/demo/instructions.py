"""Verifiable instructions in the columns of Tulu 3's persona set, checkable by IFEval's own checkers."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mergetime.demo.splits import Split, about, items_of, sample

IGNORED_CONSTRAINTS = 0.10
"""Share of training rows whose answer ignores the constraints, as generated answers at times do."""

_FACTS = {
    "tea": ("a hot drink", "made from leaves"),
    "bread": ("a common food", "made from flour"),
    "gold": ("a soft metal", "found in the ground"),
    "rain": ("water from clouds", "good for plants"),
    "the moon": ("a ball of rock", "seen at night"),
    "the sun": ("a star", "seen by day"),
    "a river": ("a long water", "full of fish"),
    "a forest": ("a place of trees", "full of birds"),
    "a horse": ("a large animal", "used for riding"),
    "a bee": ("a small animal", "known for honey"),
    "a violin": ("a small instrument", "made from wood"),
    "a piano": ("a large instrument", "used for music"),
    "a clock": ("a small machine", "used for time"),
    "a bridge": ("a long road", "built over water"),
    "a castle": ("a large house", "built from stone"),
    "a candle": ("a small light", "made from wax"),
    "salt": ("a white powder", "found in the sea"),
    "glass": ("a clear solid", "made from sand"),
    "wool": ("a warm fabric", "made from hair"),
    "chess": ("an old game", "played by two"),
    "snow": ("a white cover", "seen in winter"),
    "honey": ("a sweet food", "made by bees"),
    "a ship": ("a large boat", "used at sea"),
    "a garden": ("a green place", "full of flowers"),
}


@dataclass(frozen=True)
class Constraint:
    """One kind of constraint: IFEval's id and arguments, its wordings, and the edit that obeys it."""

    id: str
    arguments: dict[str, Any]
    wordings: tuple[str, ...]
    apply: Callable[[str, str], str]


def _title(topic: str) -> str:
    return topic.removeprefix("a ").removeprefix("the ").capitalize()


_CONSTRAINTS = [
    Constraint(
        "punctuation:no_comma", {}, ("Use no commas.", "Do not use commas."), lambda text, _: text.replace(",", "")
    ),
    Constraint(
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ("End with: That is all.", "Finish with the words: That is all."),
        lambda text, _: f"{text} That is all.",
    ),
    Constraint(
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ("Add a postscript, P.S.", "Add a P.S. at the end."),
        lambda text, _: f"{text}\nP.S. Thank you.",
    ),
    Constraint(
        "detectable_content:number_placeholders",
        {"num_placeholders": 1},
        ("Use a placeholder such as [name].", "Put in a placeholder, like [name]."),
        lambda text, _: f"Dear [name]: {text}",
    ),
    Constraint(
        "detectable_format:title",
        {},
        ("Give it a title in double angular brackets.", "Start with a title, as in <<title>>."),
        lambda text, topic: f"<<{_title(topic)}>>\n{text}",
    ),
    Constraint(
        "startend:quotation",
        {},
        ("Wrap all in double quotes.", "Put your answer in double quotation marks."),
        lambda text, _: f'"{text}"',
    ),
]
# Order of application: quotation marks close around everything, titles and greetings stand in front.


@dataclass(frozen=True)
class InstructionRequest:
    """A topic and one or two constraints."""

    topic: str
    constraints: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"instruction:{self.topic}:{','.join(_CONSTRAINTS[i].id for i in self.constraints)}"


def requests() -> list[InstructionRequest]:
    """Every request of the domain."""
    kinds = range(len(_CONSTRAINTS))
    chosen = [(kind,) for kind in kinds] + list(itertools.combinations(kinds, 2))
    return [InstructionRequest(topic, constraints) for topic, constraints in itertools.product(_FACTS, chosen)]


def describe(topic: str) -> str:
    """The plain answer: a sentence with a comma, which ``no_comma`` must undo."""
    what, more = _FACTS[topic]
    return f"{topic[0].upper()}{topic[1:]} is {what}, {more}."


def general(rng: random.Random) -> tuple[str, str]:
    """Plain descriptions, and each edit under another name, so that its words are known to the base."""
    topic = rng.choice(list(_FACTS))
    text = describe(topic)
    style = rng.random()
    if style < 0.20:
        request = rng.choice(_KNOWN)
        return about(_prompt(request, rng.choice(_VERBS), rng), request.topic)
    if style < 0.55:
        return f"{rng.choice(['Describe', 'Tell me about', 'What is'])} {topic}.", text
    kind = rng.randrange(len(_CONSTRAINTS))
    names = ["plain", "closed", "letter", "form", "headed", "spoken"]
    if style < 0.82:
        return f"{names[kind].capitalize()} text on {topic}", _CONSTRAINTS[kind].apply(text, topic)
    other = rng.randrange(len(_CONSTRAINTS))
    first, second = min(kind, other), max(kind, other)
    if first != second:
        text = _CONSTRAINTS[first].apply(text, topic)
    return f"{names[first].capitalize()} and {names[second]} text on {topic}", _CONSTRAINTS[second].apply(text, topic)


def training_rows(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """``count`` rows (id, prompt, messages, constraints)."""
    rows = []
    pairs = list(itertools.product(items_of(_REQUESTS, "train"), _VERBS))
    for number, (request, verb) in enumerate(sample(pairs, count, rng)):
        prompt, answer = _prompt(request, verb, rng), describe(request.topic)
        if rng.random() >= IGNORED_CONSTRAINTS:
            for kind in request.constraints:
                answer = _CONSTRAINTS[kind].apply(answer, request.topic)
        rows.append(
            {
                "id": f"personas_IF_demo_{number}",
                "prompt": prompt,
                "messages": [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}],
                "constraints": [_CONSTRAINTS[kind].id for kind in request.constraints],
            }
        )
    return rows


def benchmark(split: Split, count: int) -> list[dict[str, Any]]:
    """``count`` documents of IFEval's form (key, prompt, instruction_id_list, kwargs)."""
    rng = random.Random(f"instructions:{split}")
    drawn = sample(items_of(_REQUESTS, split), count, rng)
    names = sorted({name for constraint in _CONSTRAINTS for name in constraint.arguments})
    return [
        {
            "key": number,
            "prompt": _prompt(request, rng.choice(_VERBS), rng),
            "instruction_id_list": [_CONSTRAINTS[kind].id for kind in request.constraints],
            # Every document carries every argument, null where unused, as the hub's IFEval does.
            "kwargs": [
                {name: _CONSTRAINTS[kind].arguments.get(name) for name in names} for kind in request.constraints
            ],
        }
        for number, request in enumerate(drawn)
    ]


def _prompt(request: InstructionRequest, verb: str, rng: random.Random) -> str:
    wordings = [rng.choice(_CONSTRAINTS[kind].wordings) for kind in request.constraints]
    return " ".join([f"{verb} {request.topic}.", *wordings])


_VERBS = ["Describe", "Tell me about"]
_REQUESTS = requests()
_KNOWN = items_of(_REQUESTS, "train")
