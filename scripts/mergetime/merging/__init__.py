"""Merging LoRA experts: methods, the spaces they work in, and the files they read and write."""
