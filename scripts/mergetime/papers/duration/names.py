"""What the paper calls its domains and methods."""

from mergetime.publishing.names import Names

SAFETY = "safety"
"""The domain measured by refusal rate; the paper keeps it out of every average (section 3)."""

NAMES = Names(
    domains={
        "math": "Mathematics",
        "code": "Code",
        "instruction": "Instruction",
        "multilingual": "Multilingual",
        SAFETY: "Safety",
    },
    methods={
        "simple_average": "Simple Averaging",
        "task_arithmetic": "Task Arithmetic",
        "ties": "TIES",
        "dare_ties": "DARE+TIES",
        "greedy_soup": "Greedy Soup",
    },
    refusals=(SAFETY,),
)
