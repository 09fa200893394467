"""What the models of a study work on: how each kind is loaded, read, trained, measured and evaluated."""
