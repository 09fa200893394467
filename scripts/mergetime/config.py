"""A study's config: pydantic models with no unknown keys, and errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mergetime.errors import UserError
from mergetime.merging import registry
from mergetime.merging.method import nearest
from mergetime.merging.statistics import SETTINGS
from mergetime.training.optimum import QUARTERS

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9_.\-]*")


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"'{name}' is no id; use a-z, 0-9, '_', '.' and '-'")
    return name


UNRESOLVED = "unresolved"
"""Stands for a commit that nobody has looked up yet: a study with it can be planned, but nothing of it is fetched."""


def _commit(revision: str) -> str:
    if revision != UNRESOLVED and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"'{revision}' is no commit hash; a branch can move, so pin the 40 hexadecimal digits that the hub shows"
        )
    return revision


def _quarters(multiple: float) -> float:
    if multiple <= 0 or multiple * QUARTERS != int(multiple * QUARTERS):
        raise ValueError(f"{multiple} is no positive multiple of 0.25, so no saved step would be exactly there")
    return multiple


Identifier = Annotated[str, AfterValidator(_identifier)]
Commit = Annotated[str, AfterValidator(_commit)]
Multiple = Annotated[float, AfterValidator(_quarters)]
DatasetFormat = Literal[
    "dart_math", "magicoder", "magicoder_evol", "tulu_persona_if", "aya", "beavertails", "beavertails_contrast"
]
VALIDATION_LOSS = "validation_loss"
"""In suites.validation, the loss on a domain's own validation examples instead of a benchmark."""


class Strict(BaseModel):
    """A section of the config; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(Strict):
    """Where models and data sets come from: a hub's address, or a folder of repositories served on loopback."""

    endpoint: str = Field("https://huggingface.co", description="address of the hub")
    folder: str | None = Field(None, description="a folder {models,datasets}/<owner>/<name>, instead of the endpoint")


class Base(Strict):
    """A base model on the hub."""

    model: str = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="dtype that the base computes in")
    parameters: PositiveInt | None = Field(
        None, description="parameters of its language model: sizes what jobs ask of a cluster, and the plan; null: tiny"
    )
    adapter_parameters: PositiveInt | None = Field(
        None, description="for the plan: parameters of a LoRA adapter of rank 1 on all projections"
    )


class Domain(Strict):
    """A domain: its training set on the hub, and how many examples of it to use."""

    dataset: str = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    split: str = Field("train", description="split of the data set that examples are drawn from")
    format: DatasetFormat = Field(description="how its columns become chat messages")
    train: PositiveInt = Field(description="training examples")
    validation: PositiveInt = Field(description="validation examples, which determine T*")
    max_tokens: PositiveInt = Field(2048, description="longer examples are dropped, in tokens of the chat")


class Plateau(Strict):
    """The plateau schedule of seed paper 001, appendix J: the rate falls where the monitored score stagnates."""

    factor: float = Field(0.5, gt=0, lt=1, description="the rate is multiplied by this")
    patience: PositiveInt = Field(3, description="after so many validations in a row without an improvement")


class Training(Strict):
    """How experts are trained."""

    mode: Literal["qlora", "lora", "full"] = Field(
        "qlora", description="LoRA on a 4-bit NF4 base, LoRA on the base in its dtype, or all weights of the base"
    )
    rank: PositiveInt = Field(16, description="LoRA rank r")
    alpha: PositiveFloat | None = Field(None, description="LoRA alpha; the update is scaled by alpha / r; null: r")
    learning_rate: PositiveFloat = 2.0e-4
    schedule: Literal["constant", "cosine", "linear", "plateau"] = Field(
        "constant", description="learning rate after the warm-up; cosine and linear reach 0 at max_steps"
    )
    plateau: Plateau = Plateau()
    monitor: Literal["loss", "accuracy"] = Field(
        "loss", description="what the plateau schedule and early stopping watch: validation loss or token accuracy"
    )
    warmup_steps: NonNegativeInt = Field(100, description="linear warm-up, in optimizer steps")
    batch_size: PositiveInt = Field(8, description="effective batch, in examples")
    micro_batch_size: PositiveInt | None = Field(
        None, description="examples a forward pass; null: as many as the model's size and the GPU's memory allow"
    )
    gradient_checkpointing: bool | None = Field(
        None, description="recompute activations in the backward pass; null: where one example would not fit otherwise"
    )
    group_by_length: bool = Field(True, description="batches of similar lengths, for less padding; false: any order")
    save_every: PositiveInt = Field(25, description="E: an adapter every E steps, validation loss every 4 E steps")
    max_steps: PositiveInt = Field(20_000, description="training ends here even if T* was not passed five-fold")

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class EarlyStopping(Strict):
    """A rule that ends training: seed paper 001, section 5.2 (patience) and appendix J (rate_below)."""

    every: PositiveInt = Field(description="optimizer steps between validations")
    patience: PositiveInt | None = Field(
        None, description="stop after so many validations in a row without an improvement"
    )
    rate_below: PositiveFloat | None = Field(
        None, description="stop when the plateau schedule has brought the rate below this"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.patience is None) == (self.rate_below is None):
            raise ValueError("give either patience or rate_below")
        return self


class Durations(Strict):
    """The durations that experts are kept at: multiples of T*, optimizer steps, or where a rule stops them."""

    multiples_of_optimum: list[Multiple] | None = None
    steps: list[PositiveInt] | None = None
    early_stopping: dict[Identifier, EarlyStopping] | None = Field(
        None, description="rules by name; the expert is the best one, by train.monitor, that the rule has seen"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [self.multiples_of_optimum, self.steps, self.early_stopping]
        if sum(one is not None for one in given) != 1:
            raise ValueError("give one of multiples_of_optimum, steps and early_stopping")
        listed: list[float] | list[int] = self.multiples_of_optimum or self.steps or []
        if self.early_stopping is None and (not listed or sorted(set(listed)) != list(listed)):
            raise ValueError(f"{listed} is not a rising list without repeats")
        if self.early_stopping == {}:
            raise ValueError("early_stopping names no rule")
        return self


class Imported(Strict):
    """An expert of somebody else: a LoRA adapter on the hub, trained on the base of this study."""

    model: str = Field(description="hub id of the adapter")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    base: str = Field(description="id of the base, in this config, that it was trained on")
    domain: str | None = Field(None, description="domain to measure it on, for methods that need data of every expert")


class Experts(Strict):
    """The experts of the study: trained here, imported, or both."""

    train: Training | None = None
    durations: Durations | None = None
    imported: dict[Identifier, Imported] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _training_has_durations(self) -> Self:
        if (self.train is None) != (self.durations is None):
            raise ValueError("train and durations go together: give both, or neither for a study of imported experts")
        if self.train and self.durations and self.durations.steps:
            wrong = [step for step in self.durations.steps if step % self.train.save_every]
            if wrong:
                raise ValueError(
                    f"durations.steps {wrong} are no multiples of train.save_every {self.train.save_every}"
                )
            if self.durations.steps[-1] > self.train.max_steps:
                raise ValueError(f"durations.steps reach {self.durations.steps[-1]}, beyond train.max_steps")
        for name, rule in ((self.durations and self.durations.early_stopping) or {}).items():
            key = f"durations.early_stopping.{name}"
            if self.train and rule.every % self.train.save_every:
                raise ValueError(f"{key}.every {rule.every} is no multiple of train.save_every")
            if self.train and rule.rate_below and self.train.schedule != "plateau":
                raise ValueError(f"{key}.rate_below needs train.schedule: plateau")
        if self.train and self.durations and self.durations.multiples_of_optimum:
            longest = max(1.0, *self.durations.multiples_of_optimum)
            least = int(longest * QUARTERS * self.train.save_every)
            if self.train.max_steps < least:
                raise ValueError(
                    f"max_steps {self.train.max_steps} is less than {least}, the least that {longest} x T* takes"
                )
        return self


class RandomSubsets(Strict):
    """Pools of n experts drawn at random, without repeats, the same for every method."""

    sizes: list[PositiveInt] = Field(description="numbers of experts n")
    count: PositiveInt = Field(description="pools of each size")
    seed: int = Field(0, description="seed of the draw")


class Member(Strict):
    """One expert in an explicit pool."""

    expert: str = Field(description="a domain, or the name of an imported expert")
    at: str | None = Field(None, description="duration id, such as 0.25x or step_512; null for imported experts")


class Pools(Strict):
    """A named set of experts merged together, or a family of such sets."""

    experts: Literal["all"] | list[str | Member] | None = Field(
        None, description="all, a list of names at one duration, or a list of {expert, at}"
    )
    random_subsets: RandomSubsets | None = None
    at: str | list[str] | None = Field(
        None, description="each_duration, a duration id, or a list of ids; not for imported or explicit members"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.experts is None) == (self.random_subsets is None):
            raise ValueError("give either experts or random_subsets")
        return self


class Method(BaseModel):
    """A merge method with its hyper-parameters, which stand beside ``method`` and ``space``."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = Field(description="name in the registry; merge_experts.py --explain tells more")
    space: Literal["adapter", "delta"] = Field("delta", description="LoRA factors, or the weight update B A alpha / r")
    preset: str | None = Field(None, description="named hyper-parameters that reproduce another implementation")
    choose: dict[str, list[Any]] | None = Field(
        None, description="hyper-parameters to choose on the validation suite, with their candidates"
    )
    by: Literal["validation"] | None = Field(None, description="what chooses; only validation may")

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters given here."""
        return dict(self.model_extra or {})

    @property
    def written_as(self) -> Literal["adapter", "delta"]:
        """What a pool of adapters is merged into: an adapter where that is exact, else a dense task vector."""
        method = registry.get(self.method)
        choices = [
            dict(zip(self.choose or {}, values, strict=True))
            for values in itertools.product(*(self.choose or {}).values())
        ]
        exact = all(method.keeps_low_rank(method.validate({**self.parameters, **one}, self.preset)) for one in choices)
        return "adapter" if exact or self.space == "adapter" else "delta"

    @model_validator(mode="after")
    def _known(self) -> Self:
        method = registry.get(self.method)
        if self.space not in method.spaces:
            raise ValueError(f"{self.method} works in {', '.join(method.spaces)} space, not in {self.space} space")
        method.validate(self.parameters, self.preset)
        for name, candidates in (self.choose or {}).items():
            if name in self.parameters:
                raise ValueError(f"{name} is both set and to be chosen")
            for candidate in candidates:
                method.validate({**self.parameters, name: candidate}, self.preset)
        if (self.choose or self.method == "greedy_soup") and self.by != "validation":
            raise ValueError("say what chooses: by: validation")
        return self


class Statistics(Strict):
    """What is measured of every expert on its training data, for methods that need data: Fisher, RegMean, masks."""

    examples: PositiveInt = Field(128, description="chats to measure on")
    fisher: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind fisher")
    gram: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind gram")
    mask: dict[str, Any] = Field(default_factory=dict, description="settings of measure_expert.py --kind mask")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for kind, parameters in SETTINGS.items():
            known = {parameter.name: parameter for parameter in parameters}
            for name, value in getattr(self, kind).items():
                if name not in known:
                    raise ValueError(f"{kind} has no setting {name!r}{nearest(name, known)}")
                known[name].check(value)
        return self


class Benchmark(Strict):
    """A benchmark: an lm-eval task with its data, pinned, and the metric that tables report."""

    task: str = Field(description="name of the lm-eval task; {config} in it stands for each configuration in turn")
    dataset: str = Field(description="hub id of its data")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    config: str | list[str] | None = Field(
        None, description="configuration of the data set, or several of which each is a task (languages, say)"
    )
    weights: Literal["items", "tasks"] = Field(
        "items", description="of several tasks: every item counts the same, or every task does"
    )
    metric: str = Field(description="primary metric: name,filter")
    chance: float = Field(0.0, ge=0, lt=1, description="score of guessing, a share from 0 to 1")
    shots: NonNegativeInt | None = Field(None, description="examples in the prompt; null: as the task says")
    limit: PositiveInt | None = Field(None, description="only the first items of each task; null: all")
    max_new_tokens: PositiveInt | None = Field(None, description="longest response; null: as the task says")
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
    model: str = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_size: PositiveInt = 16


class Suites(Strict):
    """Which benchmark measures a domain, for choosing (validation) and for reporting (test)."""

    validation: dict[str, str] = Field(
        description=f"benchmarks, or {VALIDATION_LOSS}: the loss on the domain's own validation examples"
    )
    test: dict[str, str]


class Evaluation(Strict):
    """How subjects are evaluated."""

    backend: Literal["hf", "vllm"] = Field("hf", description="what generates; likelihoods are always computed by hf")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of the evaluated weights; updates are added in fp32 and rounded once"
    )
    chat_template: bool = Field(True, description="prompts go through the chat template, thinking off")
    batch_size: PositiveInt = Field(32, description="fixed: scores move with it")
    seed: int = 1234
    subjects_per_job: PositiveInt = Field(1, description="how many subjects a job merges, evaluates or judges")
    sandbox: Literal["required", "none"] = Field("required", description="none runs generated code unprotected")
    tasks: str | None = Field(None, description="a folder of own lm-eval task YAMLs")


class Plan(Strict):
    """What `snakemake plan` reckons with; rates that were measured in this study's benchmarks/ replace it."""

    gpu: str = Field("A100-80GB", description="name of the GPU, for the printout")
    teraflops: PositiveFloat = Field(312.0, description="peak 10^12 operations a second, dense, in bfloat16")
    bandwidth_gb_s: PositiveFloat = Field(2039.0, description="peak memory bandwidth")
    utilization: float = Field(0.3, gt=0, le=1, description="share of these peaks that is reached")
    tokens_per_example: PositiveInt = Field(400, description="of a training example, until the data is prepared")
    optimum_epochs: PositiveFloat = Field(1.0, description="T* as passes over the training examples, until it is known")


class BiasVariance(Strict):
    """How the errors of a pool's merged models are taken apart."""

    examples: PositiveInt = Field(200, description="validation examples of each domain")


class ModeConnectivity(Strict):
    """How the loss is measured along the path between two experts."""

    alphas: list[float] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], description="points of the path, rising from 0 to 1"
    )
    spaces: list[Literal["delta", "adapter"]] = Field(
        ["delta", "adapter"], min_length=1, description="what is interpolated; whole models have delta alone"
    )
    examples: PositiveInt = Field(200, description="validation examples of each of the two domains")

    @model_validator(mode="after")
    def _from_end_to_end(self) -> Self:
        if sorted(set(self.alphas)) != self.alphas or self.alphas[:1] != [0.0] or self.alphas[-1:] != [1.0]:
            raise ValueError(f"alphas {self.alphas} is not a rising list from 0 to 1")
        return self


class Study(Strict):
    """A study: base x expert x pool x method x benchmark."""

    study: Identifier = Field(description="name of the study, the folder under results/")
    seeds: list[PositiveInt] = Field([1], min_length=1, description="seeds of data order, training and masks")
    data_seed: int = Field(0, description="seed that draws train and validation examples; the same for every seed")
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
    plan: Plan = Plan()
    analyses: list[Literal["interference", "bias_variance", "mode_connectivity"]] = Field(
        default_factory=list, description="measurements of the pools that belong to the study"
    )
    claims: str = Field("config/claims/duration.yaml", description="the claims that `snakemake claims` judges")
    bias_variance: BiasVariance = BiasVariance()
    mode_connectivity: ModeConnectivity = ModeConnectivity()

    @model_validator(mode="after")
    def _names_known(self) -> Self:
        for split in ("validation", "test"):
            for domain, benchmark in getattr(self.suites, split).items():
                if benchmark == VALIDATION_LOSS and split == "validation":
                    _known(f"suites.{split}.{domain}", domain, self.domains)
                else:
                    _known(f"suites.{split}.{domain}", benchmark, self.benchmarks)
        if VALIDATION_LOSS in self.benchmarks:
            raise ValueError(f"benchmarks.{VALIDATION_LOSS}: the name stands for a domain's loss; choose another")
        for name, spec in self.benchmarks.items():
            if spec.judge:
                _known(f"benchmarks.{name}.judge", spec.judge, self.judges)
        for name, imported in self.experts.imported.items():
            _known(f"experts.imported.{name}.base", imported.base, self.bases)
            if imported.domain:
                _known(f"experts.imported.{name}.domain", imported.domain, self.domains)
            if name in self.domains:
                raise ValueError(f"experts.imported.{name} has the name of a domain")
        if self.experts.train and not self.domains:
            raise ValueError("experts.train needs domains")
        self._check_validation_share()
        in_factors = [name for name, method in self.methods.items() if method.space == "adapter"]
        if self.experts.train and self.experts.train.mode == "full" and in_factors:
            raise ValueError(f"methods.{in_factors[0]}: experts of mode full have no LoRA factors; use space: delta")
        measured = [name for name, method in self.methods.items() if registry.get(method.method).statistics]
        if self.experts.train and self.experts.train.mode == "full" and measured:
            raise ValueError(f"methods.{measured[0]}: its data are measured on LoRA experts alone, not on mode full")
        if any(method.by for method in self.methods.values()) and not self.suites.validation:
            raise ValueError("suites.validation is empty, but a method chooses by validation")
        return self

    def _check_validation_share(self) -> None:
        """Refuse validation that would take more than a quarter of a run.

        A token costs 2 operations a weight in a validation, 4 in a training step that only LoRA factors learn from
        (forward, and backward through the activations), so the share is 2 V / (2 V + 4 N) for V validation examples
        after every N training examples.
        """
        train, kept = self.experts.train, self.experts.durations
        if not train or not kept:
            return
        rules = kept.early_stopping or {}
        every = math.gcd(*(rule.every for rule in rules.values())) if rules else QUARTERS * train.save_every
        for name, domain in self.domains.items():
            most = 2 * every * train.batch_size // 3
            if domain.validation > most:
                raise ValueError(
                    f"domains.{name}.validation: {domain.validation} examples every {every} steps would take more than "
                    f"a quarter of the run; take at most {most}, or validate less often (experts.train.save_every)"
                )


def _known(key: str, name: str, among: dict[str, Any]) -> None:
    if name not in among:
        raise ValueError(f"{key}: '{name}' is unknown{nearest(name, among)}")


def parse(data: Any, source: str) -> Study:
    """A study from loaded YAML.

    Raises:
        UserError: in one line that names ``source``, the key, and the nearest valid one.
    """
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise UserError("; ".join(_line(source, item) for item in error.errors()[:3])) from error


def load(path: Path) -> Study:
    """The study in a YAML file; errors as :func:`parse` gives them."""
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return parse(data, str(path))


def schema() -> str:
    """The JSON schema of a config, for editors; config/schema.json holds it."""
    return json.dumps(Study.model_json_schema(), indent=2) + "\n"


def _line(source: str, item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"] if part not in ("str", "Member", "literal['all']", "list[union]"))
    if item["type"] == "extra_forbidden":
        return f"{source}: {key}: unknown key{nearest(str(item['loc'][-1]), _fields(item['loc'][:-1]))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{source}: {key}: {message}" if key else f"{source}: {message}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at ``location`` takes."""
    schema = Study.model_json_schema()
    section: Any = schema
    for part in location:
        while "$ref" in section or "anyOf" in section:
            section = schema["$defs"][section["$ref"].rsplit("/", 1)[1]] if "$ref" in section else section["anyOf"][0]
        section = (
            section.get("properties", {}).get(part) or section.get("additionalProperties") or section.get("items", {})
        )
    while "$ref" in section or "anyOf" in section:
        section = schema["$defs"][section["$ref"].rsplit("/", 1)[1]] if "$ref" in section else section["anyOf"][0]
    return list(section.get("properties", {}))
