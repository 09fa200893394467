"""What the models of a study work on: how each kind is loaded, read, trained, measured and evaluated.

A modality is a folder of this package, named as in ``bases.*.modality``, with a module for each part
(:data:`mergetime.modalities.parts.PARTS`):

- ``reading``: what an example is (:class:`mergetime.modalities.reading.Reading`),
- ``learning``: the model and its loss (:class:`mergetime.modalities.learning.Learning`),
- ``evaluating``: its benchmarks, and what tells two models apart (:class:`mergetime.modalities.evaluating.Evaluating`).

Stages ask for the parts that they use, as ``learning.get("causal_lm")``, and hold no condition on the modality. Parts
are loaded by name, so that a new modality is a new folder. Why not in one piece: code that uses one part alone need not
run again when another one changes.
"""
