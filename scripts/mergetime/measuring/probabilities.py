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
import pyarrow as pa

from mergetime.core.tables import Column, Columns

if TYPE_CHECKING:
    from mergetime.measuring.loading import Loaded

EXPERT, MERGED = "expert", "merged"
COLUMNS: Columns = {
    "kind": Column(pa.string(), False, f"{EXPERT}, or {MERGED}: a merge of all experts of the pool"),
    "name": Column(pa.string(), False, "the expert's name in its pool, or the method's id in the config"),
    "domain": Column(pa.string(), False, "the domain whose validation example it is"),
    "example": Column(pa.int64(), False, "position of the example in the domain's validation.parquet, from 0"),
    "tokens": Column(pa.int64(), False, "tokens of the reference response, its end included"),
    "loss": Column(pa.float64(), False, "mean loss of these tokens, nats"),
    "probability": Column(pa.float64(), False, "exp(-loss): the geometric mean of the tokens' probabilities"),
}


def measure(loaded: "Loaded", subjects: Sequence[tuple[str, str, Path]], batch_size: int) -> pd.DataFrame:
    """The probabilities of every subject on every example, in the columns :data:`COLUMNS`.

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
    return pd.DataFrame(rows, columns=list(COLUMNS))
