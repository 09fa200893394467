"""A study, and the sections on what is planned and analysed."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mergetime.artifacts.forms import CHECKPOINT
from mergetime.config.evaluation import VALIDATION_LOSS, Benchmark, Evaluation, Judge, Suites
from mergetime.config.experts import Experts, Recipe
from mergetime.config.fields import (
    NUMBER,
    Count,
    Distinct,
    Identifier,
    PaperName,
    PlainPath,
    PlainWords,
    Positive,
    Seed,
    Strict,
    known,
)
from mergetime.config.merging import Method, Pools, Statistics
from mergetime.config.sources import Base, Domain, Hub
from mergetime.core.quarters import QUARTERS
from mergetime.merging import registry


class PlanAssumptions(Strict):
    """What `snakemake plan` assumes; rates that were measured in this study's benchmarks/ replace it."""

    gpu: PlainWords = Field("A100-80GB", description="the GPU, as the table of rates names it")
    teraflops: Positive | None = Field(
        None, description="its peak 10^12 operations a second, dense, in bfloat16; null: as the table of rates says"
    )
    bandwidth_gb_s: Positive | None = Field(None, description="its peak memory bandwidth; null: as the table says")
    kernels: Literal["torch", "fused"] = Field(
        "torch", description="what linear attention is computed with: PyTorch's operations, or flash-linear-attention"
    )
    rates: PlainPath = Field("config/plan/rates.yaml", description="the table of measured rates")
    utilization: Annotated[float, Field(gt=0, le=1), NUMBER] = Field(
        0.3, description="share of these peaks that is reached by what no rate was measured of"
    )
    tokens_per_example: Count = Field(400, description="of a training example, until the data is prepared")
    optimum_epochs: Positive = Field(1.0, description="T* as passes over the training examples, until it is known")


class BiasVariance(Strict):
    """How the errors of a pool's merged models are taken apart."""

    examples: Count = Field(200, description="validation examples of each domain")


class ModeConnectivity(Strict):
    """How the loss is measured along the path between two experts."""

    alphas: list[Annotated[float, NUMBER]] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], description="points of the path, rising from 0 to 1"
    )
    spaces: Annotated[list[Literal["delta", "adapter"]], Distinct] = Field(
        ["delta", "adapter"], min_length=1, description="what is interpolated; whole models have delta alone"
    )
    examples: Count = Field(200, description="validation examples of each of the two domains")

    @model_validator(mode="after")
    def _from_end_to_end(self) -> Self:
        if sorted(set(self.alphas)) != self.alphas or self.alphas[:1] != [0.0] or self.alphas[-1:] != [1.0]:
            raise ValueError(f"alphas {self.alphas} is not a rising list from 0 to 1")
        return self


class Study(Strict):
    """A study: base x expert x pool x method x benchmark."""

    study: Identifier = Field(description="name of the study, the folder under results/")
    paper: PaperName | None = Field(
        None, description="the paper whose tables, figures and claims it has; null: only what every study has"
    )
    seeds: Annotated[list[Annotated[int, Field(ge=1, le=2**32 - 1), NUMBER]], Distinct] = Field(
        [1], min_length=1, description="seeds of data order, training and masks"
    )
    data_seed: Seed = Field(0, description="seed that draws train and validation examples; the same for every seed")
    hub: Hub = Hub()
    bases: dict[Identifier, Base] = Field(min_length=1)
    domains: dict[Identifier, Domain] = Field(default_factory=dict)
    experts: Experts
    pools: dict[Identifier, Pools]
    methods: dict[Identifier, Method]
    benchmarks: dict[Identifier, Benchmark]
    suites: Suites
    keep_dense_merges: bool = Field(
        True, description="false: a dense task vector is removed after its evaluation, and made again when asked for"
    )
    statistics: Statistics = Statistics()
    evaluation: Evaluation = Evaluation()
    judges: dict[Identifier, Judge] = Field(default_factory=dict)
    plan: PlanAssumptions = PlanAssumptions()
    analyses: Annotated[list[Literal["interference", "bias_variance", "mode_connectivity"]], Distinct] = Field(
        default_factory=list, description="measurements of the pools that belong to the study"
    )
    claims: PlainPath | None = Field(
        None, description="the claims that `snakemake claims` judges; null: those of the paper, if it has any"
    )
    bias_variance: BiasVariance = BiasVariance()
    mode_connectivity: ModeConnectivity = ModeConnectivity()

    @model_validator(mode="before")
    @classmethod
    def _only_paper(cls, data: Any) -> Any:
        """A study.json from before the key ``paper`` names the file of the claims of the only paper that there was."""
        if isinstance(data, dict) and "paper" not in data and data.get("claims") == "config/claims/duration.yaml":
            return {**data, "paper": "duration", "claims": None}
        return data

    @model_validator(mode="after")
    def _names_known(self) -> Self:
        for group, suite in self.suites.groups.items():
            for domain, benchmarks in suite.items():
                for benchmark in benchmarks:
                    if benchmark == VALIDATION_LOSS and group == "validation":
                        known(f"suites.{group}.{domain}", domain, self.domains)
                    else:
                        known(f"suites.{group}.{domain}", benchmark, self.benchmarks)
        if VALIDATION_LOSS in self.benchmarks:
            raise ValueError(f"benchmarks.{VALIDATION_LOSS}: the name stands for a domain's loss; choose another")
        for name, spec in self.benchmarks.items():
            if spec.judge:
                known(f"benchmarks.{name}.judge", spec.judge, self.judges)
        for name, imported in self.experts.imported.items():
            known(f"experts.imported.{name}.base", imported.base, self.bases)
            if imported.domain:
                known(f"experts.imported.{name}.domain", imported.domain, self.domains)
            if name in self.domains:
                raise ValueError(f"experts.imported.{name} has the name of a domain")
        for name, method in self.methods.items():
            for family in method.pools or ():
                known(f"methods.{name}.pools", family, self.pools)
        recipes = self.experts.all_recipes
        if recipes and not self.domains:
            raise ValueError(f"experts.{'train' if self.experts.train else 'recipes'} needs domains")
        for name, recipe in recipes.items():
            self._check_validation_share(recipe, f"recipes.{name}." if self.experts.recipes else "")
        self._check_whole_models()
        self._check_merges_are_measured()
        if any(method.by for method in self.methods.values()) and not self.suites.validation:
            raise ValueError("suites.validation is empty, but a method chooses by validation")
        return self

    def _check_merges_are_measured(self) -> None:
        """Refuse methods where nothing is merged, or where nothing would be said of what is."""
        if not self.methods:
            return
        if not self.pools:
            raise ValueError("pools: there are none, so methods have nothing to merge; name one, or no method")
        if not self.analyses and set(self.suites.groups) <= {"validation"}:
            raise ValueError("suites.test names no benchmark, so nothing would be said of the merges; name one")

    def _check_whole_models(self) -> None:
        """Refuse methods that need LoRA factors, or what is measured with them, of pools of whole models."""
        recipes = self.experts.all_recipes
        whole = {name for name, recipe in recipes.items() if recipe.train.form == CHECKPOINT}
        pools = {family for family, spec in self.pools.items() if whole & spec.recipes_of(recipes)}
        for name, method in self.methods.items():
            refused = pools if method.pools is None else pools & set(method.pools)
            if refused and method.space == "adapter":
                raise ValueError(
                    f"methods.{name}: experts of mode full, as in pools.{min(refused)}, have no LoRA factors; "
                    "use space: delta, or name its pools"
                )
            if refused and registry.get(method.method).statistics:
                raise ValueError(
                    f"methods.{name}: its data are measured on LoRA experts alone, not on mode full, as in "
                    f"pools.{min(refused)}; name its pools"
                )

    def _check_validation_share(self, recipe: Recipe, key: str) -> None:
        """Refuse validation that would take more than a quarter of a run.

        A token costs 2 operations a weight in a validation, 4 in a training step that only LoRA factors learn from
        (forward, and backward through the activations), so the share is 2 V / (2 V + 4 N) for V validation examples
        after every N training examples.
        """
        train = recipe.train
        rules = recipe.durations.early_stopping or {}
        every = math.gcd(*(rule.every for rule in rules.values())) if rules else QUARTERS * train.save_every
        for name, domain in self.domains.items():
            most = 2 * every * train.batch_size // 3
            if domain.validation > most:
                raise ValueError(
                    f"domains.{name}.validation: {domain.validation} examples every {every} steps would take more than "
                    f"a quarter of the run; take at most {most}, or validate less often (experts.{key}train.save_every)"
                )
