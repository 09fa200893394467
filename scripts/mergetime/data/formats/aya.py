"""The Aya data set (CohereForAI): inputs and targets in many languages."""

from mergetime.data.format import Format, chat

FORMAT = Format(("inputs", "targets"), lambda row: chat(row["inputs"], row["targets"]))
