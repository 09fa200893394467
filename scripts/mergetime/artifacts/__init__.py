"""The files that experts and merges are: adapters, task vectors, checkpoints; read, written, put on a base."""
