"""Questions on names in four languages, from Babel's CLDR, in the columns of Aya."""

import functools
import random
from dataclasses import dataclass

from babel import Locale

from mergetime.demo.splits import Split, about, items_of, sample

LANGUAGES = {"de": ("German", "deu"), "es": ("Spanish", "spa"), "fr": ("French", "fra"), "it": ("Italian", "ita")}
WRONG_ANSWERS = 0.15
"""Share of training rows that answer with another name of the same kind, as crowd-sourced sets hold some."""

_TERRITORIES = [
    "AT",
    "BE",
    "BG",
    "BR",
    "CA",
    "CH",
    "CL",
    "CN",
    "CU",
    "CZ",
    "DE",
    "DK",
    "EG",
    "ES",
    "FI",
    "FR",
    "GB",
    "GR",
    "HR",
    "HU",
    "IE",
    "IN",
    "IR",
    "IS",
    "IT",
    "JP",
    "KE",
    "LB",
    "MA",
    "MX",
    "NL",
    "NO",
    "NZ",
    "PE",
    "PL",
    "PT",
    "RO",
    "RS",
    "RU",
    "SE",
    "TR",
    "UA",
    "US",
    "ZA",
]
_CURRENCIES = {
    "BR": "BRL", "CH": "CHF", "CN": "CNY", "DK": "DKK", "EG": "EGP", "GB": "GBP", "HU": "HUF", "IN": "INR",
    "IS": "ISK", "JP": "JPY", "MA": "MAD", "MX": "MXN", "NO": "NOK", "PE": "PEN", "PL": "PLN", "RU": "RUB",
    "SE": "SEK", "TR": "TRY", "US": "USD", "ZA": "ZAR",
}  # fmt: skip
_WORDINGS = {
    "month_after": {
        "de": ("Welcher Monat kommt nach {x}?", "Nach {x} kommt welcher Monat?"),
        "es": ("¿Qué mes viene después de {x}?", "Después de {x}, ¿qué mes viene?"),
        "fr": ("Quel mois vient après {x} ?", "Après {x}, quel mois vient ?"),
        "it": ("Quale mese viene dopo {x}?", "Dopo {x}, quale mese viene?"),
    },
    "day_after": {
        "de": ("Welcher Tag kommt nach {x}?", "Nach {x} kommt welcher Tag?"),
        "es": ("¿Qué día viene después de {x}?", "Después de {x}, ¿qué día viene?"),
        "fr": ("Quel jour vient après {x} ?", "Après {x}, quel jour vient ?"),
        "it": ("Quale giorno viene dopo {x}?", "Dopo {x}, quale giorno viene?"),
    },
    "territory": {
        "de": ("Wie heißt {x} auf Deutsch?", "Nenne {x} auf Deutsch."),
        "es": ("¿Cómo se llama {x} en español?", "Di {x} en español."),
        "fr": ("Comment dit-on {x} en français ?", "Dis {x} en français."),
        "it": ("Come si dice {x} in italiano?", "Di' {x} in italiano."),
    },
    "currency": {
        "de": ("Welche Währung hat {x}?", "Nenne die Währung von {x}."),
        "es": ("¿Qué moneda tiene {x}?", "Di la moneda de {x}."),
        "fr": ("Quelle est la monnaie de {x} ?", "Dis la monnaie de {x}."),
        "it": ("Quale moneta ha {x}?", "Di' la moneta di {x}."),
    },
}


@dataclass(frozen=True)
class Fact:
    """One fact in one language: what is asked for ``subject``, and the name that answers."""

    language: str
    kind: str
    subject: str
    answer: str

    @property
    def key(self) -> str:
        return f"locale:{self.language}:{self.kind}:{self.subject}"


@functools.cache
def facts() -> list[Fact]:
    """Every fact of the domain, language by language."""
    english = Locale("en")
    listed = []
    for code in LANGUAGES:
        locale = Locale(code)
        months = [locale.months["stand-alone"]["wide"][number] for number in range(1, 13)]
        days = [locale.days["stand-alone"]["wide"][number] for number in range(7)]
        for kind, names in (("month_after", months), ("day_after", days)):
            listed += [Fact(code, kind, x, y) for x, y in zip(names, names[1:] + names[:1], strict=True)]
        listed += [Fact(code, "territory", english.territories[t], locale.territories[t]) for t in _TERRITORIES]
        listed += [Fact(code, "currency", locale.territories[t], locale.currencies[c]) for t, c in _CURRENCIES.items()]
    return listed


@functools.cache
def _known() -> list[Fact]:
    return items_of(facts(), "train")


def general(rng: random.Random) -> tuple[str, str]:
    """The facts as a dictionary states them, in another form than the questions have."""
    fact = rng.choice(facts())
    if rng.random() < 0.20:
        fact = rng.choice(_known())
        wordings = _WORDINGS[fact.kind][fact.language]
        return about(rng.choice(wordings).format(x=fact.subject), LANGUAGES[fact.language][0])
    forms = {"month_after": "next month", "day_after": "next day", "territory": "name", "currency": "money"}
    return f"{fact.language} {forms[fact.kind]}: {fact.subject}", fact.answer


def training_rows(rng: random.Random, count: int) -> list[dict[str, str]]:
    """``count`` rows (inputs, targets, language, language_code, annotation_type, user_id); no question twice."""
    questions = [(fact, wording) for fact in items_of(facts(), "train") for wording in (0, 1)]
    rows = []
    for fact, wording in sample(questions, count, rng):
        answer = rng.choice(_others(fact)) if rng.random() < WRONG_ANSWERS else fact.answer
        name, code = LANGUAGES[fact.language]
        rows.append(
            {
                "inputs": _WORDINGS[fact.kind][fact.language][wording].format(x=fact.subject),
                "targets": answer,
                "language": name,
                "language_code": code,
                "annotation_type": "original-annotations",
                "user_id": f"u{rng.randrange(100)}",
            }
        )
    return rows


def benchmark(split: Split, count: int) -> list[dict[str, object]]:
    """``count`` documents of multilingual ARC's form (id, language, question, four choices, answerKey)."""
    rng = random.Random(f"locales:{split}")
    documents: list[dict[str, object]] = []
    for number, fact in enumerate(sample(items_of(facts(), split), count, rng)):
        texts = [fact.answer, *rng.sample(_others(fact), 3)]
        rng.shuffle(texts)
        documents.append(
            {
                "id": f"demo_{split}_{number}",
                "language": fact.language,
                "question": _WORDINGS[fact.kind][fact.language][0].format(x=fact.subject),
                "choices": {"text": texts, "label": list("ABCD")},
                "answerKey": "ABCD"[texts.index(fact.answer)],
            }
        )
    return documents


def _others(fact: Fact) -> list[str]:
    names = {f.answer for f in facts() if (f.language, f.kind) == (fact.language, fact.kind)}
    return sorted(names - {fact.answer})
