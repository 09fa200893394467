"""Causal language models on chats: the loss is taken on the tokens of the response."""

from typing import TYPE_CHECKING

# That each part is complete is checked with the types, by nobody at run time.
if TYPE_CHECKING:
    from mergetime.modalities.causal_lm import evaluating, learning, reading
    from mergetime.modalities.evaluating import Evaluating
    from mergetime.modalities.learning import Learning
    from mergetime.modalities.reading import Reading

    _reading: Reading = reading
    _learning: Learning = learning
    _evaluating: Evaluating = evaluating
