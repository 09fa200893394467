"""Which checks there are, in the order of their worth, and how long each may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """A check: the module that makes it, and what its function ``check`` is given beside the setting.

    ``limit_s`` are seconds after which it is stopped, imports included; with fewer than ``least_s`` seconds left it is
    not begun.
    """

    name: str
    module: str
    limit_s: float
    least_s: float
    given: Mapping[str, Any] = field(default_factory=dict)


CHECKS_IN = "tests.gpu.checks"
CHECKS = (
    Check("kernels", f"{CHECKS_IN}.kernels", 60, 20),
    Check("qlora-4b", f"{CHECKS_IN}.training", 150, 60, {"size": "4B", "mode": "qlora"}),
    Check("lora-0.8b", f"{CHECKS_IN}.training", 100, 40, {"size": "0.8B", "mode": "lora"}),
    Check("trl", f"{CHECKS_IN}.trl", 110, 60),
    Check("resume", f"{CHECKS_IN}.resume", 60, 30),
    Check("evaluation", f"{CHECKS_IN}.evaluation", 80, 40),
    Check("memory", f"{CHECKS_IN}.memory", 70, 40),
    Check("merges", f"{CHECKS_IN}.merges", 60, 20),
    Check("mergekit", f"{CHECKS_IN}.mergekit", 120, 60),
    Check("smoke", f"{CHECKS_IN}.smoke", 300, 90),
)
