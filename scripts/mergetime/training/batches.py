"""What a step reads: batches, their order, and the loss of a batch whose logits are there."""

from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from mergetime.data.encoding import IGNORED, Encoded


class LengthGrouped(LengthGroupedSampler):
    """transformers' own order, drawn from the seed and the epoch, so that a resumed epoch has it too."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return iter(super().__iter__())


def collate(batch: list[Encoded], padding: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids, attention_mask, labels, each int64 [examples, longest]."""
    longest = max(len(example.ids) for example in batch)

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
