"""Chat messages as token ids, with the prompt masked in the loss."""

from dataclasses import dataclass
from typing import Any

from mergetime.data.messages import Messages

IGNORED = -100
"""Label of tokens outside the loss, as PyTorch's cross entropy takes it."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one chat; the first ``prompt`` of them are no part of the loss."""

    ids: list[int]
    prompt: int

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.ids)

    @property
    def items(self) -> int:
        """The tokens of its response, the end of turn included."""
        return len(self.ids) - self.prompt

    @property
    def labels(self) -> list[int]:
        """The ids with the prompt masked."""
        return [IGNORED] * self.prompt + self.ids[self.prompt :]


def encode_chat(tokenizer: Any, messages: Messages) -> Encoded:
    """The chat with thinking off: everything up to the last response, then the response and the end of turn.

    The prompt is rendered as at evaluation, generation prompt included, so that experts train on exactly the
    context in which they answer; prompt and response are tokenised apart for the same reason.
    """
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response = messages[-1]["content"] + tokenizer.eos_token
    response_ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    return Encoded(prompt_ids + response_ids, len(prompt_ids))
