"""DART-Math (hkust-nlp): a mathematical question and a worked solution."""

from mergetime.data.format import Format, chat

FORMAT = Format(("query", "response"), lambda row: chat(row["query"], row["response"]))
