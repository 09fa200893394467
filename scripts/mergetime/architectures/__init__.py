"""What the tensors of a model are for: data, one YAML file per family, and the functions that read it."""
