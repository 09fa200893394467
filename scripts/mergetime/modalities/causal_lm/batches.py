"""Examples as padded batches, and the loss of a batch whose logits are there."""

from collections.abc import Sequence

import torch

from mergetime.modalities.causal_lm.encoding import IGNORED, Encoded


def collate(batch: Sequence[Encoded], padding: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids, attention_mask, labels, each int64 [examples, longest].

    ``longest`` is the longest example's length, rounded up to a ``multiple``.
    """
    longest = -(-max(len(example.ids) for example in batch) // multiple) * multiple

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": pad([example.ids for example in batch], padding),
        "attention_mask": pad([[1] * len(example.ids) for example in batch], 0),
        "labels": pad([example.labels for example in batch], IGNORED),
    }


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the loss over an example's response tokens, and their number: float32 [examples, 2], in nats."""
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(1), (targets != IGNORED).sum(1).float()], dim=1)
