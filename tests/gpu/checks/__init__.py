"""The checks: each module's function ``check`` yields figures as it comes to them.

``python -m tests.gpu.checks`` is how :mod:`tests.gpu.run` runs them, each in a process of its own.
"""
