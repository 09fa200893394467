"""From a data set's own columns to train and validation examples: formats, filters, encoding."""
