"""What every script that evaluates is given: the benchmarks of a split, and how to run them."""

from pathlib import Path
from typing import Any

from pydantic import Field

from mergetime.config.evaluation import Benchmark, Evaluation
from mergetime.config.fields import Strict
from mergetime.modalities.parts import DEFAULT


class SuiteBenchmark(Strict):
    """A benchmark of a split, and the folders where its data was fetched to, by configuration of the data set."""

    name: str
    domain: str
    benchmark: Benchmark
    folders: dict[str, Path]


class SuiteOptions(Strict):
    """The benchmarks of a split and how they are run, as JSON; its sections are those of the config."""

    split: str
    modality: str = DEFAULT
    """What the base works on."""
    benchmarks: tuple[SuiteBenchmark, ...] = ()
    validation_loss: dict[str, Path] = Field(default_factory=dict)
    """A domain's validation examples, as prepared, to compute the loss on."""
    evaluation: Evaluation
    cache: Path
    """Folder of the data sets' cache."""

    @property
    def recorded(self) -> dict[str, Any]:
        """What determines the numbers, for the record."""
        options = self.model_dump(mode="json", exclude={"cache": True, "evaluation": {"subjects_per_job", "tasks"}})
        for benchmark in options["benchmarks"]:
            for unused in ("chance", "judge"):
                del benchmark["benchmark"][unused]
        return options
