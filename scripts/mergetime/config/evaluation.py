"""The sections on evaluation: benchmarks, judges, suites."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergetime.config.fields import (
    NUMBER,
    Commit,
    Count,
    Distinct,
    Filled,
    HubId,
    Identifier,
    MetricName,
    PartName,
    PlainPath,
    Seed,
    Strict,
    TaskName,
    Whole,
)

_GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VALIDATION_LOSS = "validation_loss"
"""In suites.validation, the loss on a domain's own validation examples instead of a benchmark."""


class Benchmark(Strict):
    """A benchmark: an lm-eval task with its data, pinned, and the metric that tables report."""

    task: TaskName = Field(description="name of the lm-eval task; {config} in it stands for each configuration in turn")
    dataset: HubId = Field(description="hub id of its data")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    config: Annotated[PartName | list[PartName] | None, Filled, Distinct] = Field(
        None, description="configuration of the data set, or several of which each is a task (languages, say)"
    )
    weights: Literal["items", "tasks"] = Field(
        "items", description="of several tasks: every item counts the same, or every task does"
    )
    metric: MetricName = Field(description="primary metric: name,filter")
    chance: Annotated[float, Field(ge=0, lt=1), NUMBER] = Field(
        0.0, description="score of guessing, a share from 0 to 1"
    )
    shots: Whole | None = Field(None, description="examples in the prompt; null: as the task says")
    limit: Count | None = Field(None, description="only the first items of each task; null: all")
    max_new_tokens: Count | None = Field(None, description="longest response; null: as the task says")
    judge: str | None = Field(
        None, description="a model under judges that says which responses are refusals; null: keywords"
    )

    @property
    def configs(self) -> list[str | None]:
        """The configurations of the data set, of which each is a task."""
        return list(self.config) if isinstance(self.config, list) else [self.config]

    @model_validator(mode="after")
    def _tasks_differ(self) -> Self:
        if isinstance(self.config, list) and "{config}" not in self.task:
            raise ValueError("task must contain {config} where config is a list")
        return self


class Judge(Strict):
    """A model that judges saved responses."""

    kind: Literal["wildguard"] = Field("wildguard", description="how it is asked and how its answer is read")
    model: HubId = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: Count = 16


Group = dict[Identifier, Identifier | list[Identifier]]
"""By domain, the benchmark that measures it, or several."""


class Suites(BaseModel):
    """Which benchmarks measure a domain, in groups: ``validation`` chooses, ``test`` and any other group report."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Group] = Field(init=False)

    validation: Group = Field(
        description=f"benchmarks, or {VALIDATION_LOSS}: the loss on the domain's own validation examples"
    )
    test: Group

    @property
    def groups(self) -> dict[str, dict[str, list[str]]]:
        """The benchmarks of each domain, by group: validation and test first, those without any benchmark left out."""
        given: dict[str, Group] = {"validation": self.validation, "test": self.test, **(self.model_extra or {})}
        return {
            name: {domain: [names] if isinstance(names, str) else names for domain, names in group.items()}
            for name, group in given.items()
            if group
        }

    @model_validator(mode="after")
    def _readable(self) -> Self:
        for name, group in (self.model_extra or {}).items():
            if not group:
                raise ValueError(f"{name}: names no benchmark; name one, or leave {name} out")
        for name, group in self.groups.items():
            if not _GROUP_NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' names no group, since files are named by it; use at most 64 of a-z, 0-9, '_', '-'"
                )
            for domain, benchmarks in group.items():
                if not benchmarks or len(set(benchmarks)) < len(benchmarks):
                    raise ValueError(f"{name}.{domain}: {benchmarks} lists nothing, or a benchmark twice")
        return self


class Evaluation(Strict):
    """How subjects are evaluated."""

    backend: Literal["hf", "vllm"] = Field("hf", description="what generates; likelihoods are always computed by hf")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the evaluated weights; updates are added in fp32 and rounded once"
    )
    chat_template: bool = Field(True, description="prompts go through the chat template, thinking off")
    batch_size: Count = Field(32, description="fixed: scores move with it")
    seed: Seed = 1234
    keep_metrics: Literal["all", "primary"] = Field(
        "all", description="of scores by item: all metrics go into samples.parquet, or the primary of each benchmark"
    )
    subjects_per_job: Count = Field(1, description="how many subjects a job merges, evaluates or judges")
    sandbox: Literal["required", "none"] = Field(
        "required",
        description="none runs generated code unprotected, where the environment says MERGETIME_SANDBOX=none",
    )
    tasks: PlainPath | None = Field(None, description="a folder of own lm-eval task YAMLs")
