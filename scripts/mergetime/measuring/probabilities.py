"""The probability that a model gives the reference response of an example: a number to compare models by.

p(x) = (product over the T tokens t of the response of P(t | what comes before))^(1/T) = exp(-loss(x)) in (0, 1]

with the loss in nats per token, as in training. It is the geometric mean of the tokens' probabilities: the probability
of the whole response falls to 0 exponentially with its length, so that its squared error would be 1 of every long
response and of every model; the geometric mean is on the scale of one token, whatever the length, and is 1 only where
every token is certain. So 1 is the target, and 1 - p the error. Where an example has one label, T is 1.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mergetime.measuring.columns import PROBABILITIES

if TYPE_CHECKING:
    from mergetime.measuring.loading import Loaded


def measure(loaded: "Loaded", subjects: Sequence[tuple[str, str, Path]], batch_size: int) -> pd.DataFrame:
    """The probabilities of every subject on every example, in the columns ``PROBABILITIES`` of measuring/columns.py.

    Args:
        loaded: the base, and the examples by domain.
        subjects: kind, name and folder of experts and merged models.
        batch_size: examples of a forward pass.

    Raises:
        UserError: where a subject does not fit the base, or its logits are the base's.
    """
    from mergetime.artifacts.apply import applied
    from mergetime.evaluation.fingerprint import check_applied
    from mergetime.evaluation.losses import validation_losses
    from mergetime.modalities import evaluating, learning

    part, how = learning.get(loaded.modality), evaluating.get(loaded.modality)
    base = how.probe(loaded.model, loaded.reader)
    rows = []
    for kind, name, folder in subjects:
        with applied(loaded.model, folder):
            check_applied(name, how.probe(loaded.model, loaded.reader), {"the base": base})
            for domain, examples in loaded.examples.items():
                for place, (total, count) in enumerate(validation_losses(part, loaded.model, examples, batch_size)):
                    loss = total / count
                    rows.append((kind, name, domain, place, count, loss, math.exp(-loss)))
    return pd.DataFrame(rows, columns=list(PROBABILITIES))
