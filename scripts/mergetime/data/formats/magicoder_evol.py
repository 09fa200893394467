"""Magicoder-Evol-Instruct (ise-uiuc): an instruction about code and a response."""

from mergetime.data.format import Format, chat

FORMAT = Format(("instruction", "response"), lambda row: chat(row["instruction"], row["response"]))
