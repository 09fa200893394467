"""The demo study's inputs, made from seeds and from CLDR: five training sets, five benchmarks, a base.

Each domain module offers the same three functions:

- ``general(rng)``: one (prompt, response) pair of the general mixture that the base is pre-trained on;
- ``training_rows(rng, count)``: rows with the column names and types of the real data set;
- ``benchmark(split, count)``: documents of the ``validation`` or ``test`` split.

An item (an arithmetic problem, a function, a fact ...) belongs to exactly one of train, validation and test,
by the hash of its key (:func:`mergetime.demo.splits.split_of`), so that the three are disjoint by construction.
"""
