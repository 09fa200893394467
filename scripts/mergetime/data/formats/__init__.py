"""One module per data format; its file name is the name in configs, and it exports ``FORMAT``."""
