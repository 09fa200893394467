"""Magicoder-OSS-Instruct (ise-uiuc): a programming problem and its solution."""

from mergetime.data.format import Format, chat

FORMAT = Format(("problem", "solution"), lambda row: chat(row["problem"], row["solution"]))
