"""The merge methods, one file a family. The registry finds every file's ``METHODS``; nothing lists them."""
