"""A study's config: pydantic models with no unknown keys, and errors in one line.

Imported while Snakemake parses the workflow, in every job: nothing heavy is imported here.
"""

import itertools
import json
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


def _commit(revision: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
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
DatasetFormat = Literal["dart_math", "magicoder", "tulu_persona_if", "aya", "beavertails"]


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


class Training(Strict):
    """How experts are trained."""

    mode: Literal["qlora", "lora"] = Field("qlora", description="LoRA on a 4-bit NF4 base, or on the base in its dtype")
    rank: PositiveInt = Field(16, description="LoRA rank r")
    alpha: PositiveFloat | None = Field(None, description="LoRA alpha; the update is scaled by alpha / r; null: r")
    learning_rate: PositiveFloat = 2.0e-4
    schedule: Literal["constant"] = Field("constant", description="learning rate after the warm-up")
    warmup_steps: NonNegativeInt = Field(100, description="linear warm-up, in optimizer steps")
    batch_size: PositiveInt = Field(8, description="effective batch, in examples")
    micro_batch_size: PositiveInt | None = Field(None, description="examples a forward pass; null: the whole batch")
    save_every: PositiveInt = Field(25, description="E: an adapter every E steps, validation loss every 4 E steps")
    max_steps: PositiveInt = Field(20_000, description="training ends here even if T* was not passed five-fold")

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class Durations(Strict):
    """The durations that experts are kept at: multiples of T*, or optimizer steps."""

    multiples_of_optimum: list[Multiple] | None = None
    steps: list[PositiveInt] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.multiples_of_optimum is None) == (self.steps is None):
            raise ValueError("give either multiples_of_optimum or steps")
        listed = self.multiples_of_optimum or self.steps or []
        if not listed or sorted(set(listed)) != list(listed):
            raise ValueError(f"{listed} is not a rising list without repeats")
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

    task: str = Field(description="name of the lm-eval task")
    dataset: str = Field(description="hub id of its data")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    config: str | None = Field(None, description="configuration of the data set, where it has several")
    metric: str = Field(description="primary metric: name,filter")
    chance: float = Field(0.0, ge=0, lt=1, description="score of guessing, a share from 0 to 1")


class Suites(Strict):
    """Which benchmark measures a domain, for choosing (validation) and for reporting (test)."""

    validation: dict[str, str]
    test: dict[str, str]


class Evaluation(Strict):
    """How subjects are evaluated."""

    batch_size: PositiveInt = Field(32, description="fixed: scores move with it")
    seed: int = 1234
    subjects_per_job: PositiveInt = Field(1, description="how many subjects a job takes one after another")
    sandbox: Literal["required", "none"] = Field("required", description="none runs generated code unprotected")
    tasks: str | None = Field(None, description="a folder of own lm-eval task YAMLs")


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
    statistics: Statistics = Statistics()
    evaluation: Evaluation = Evaluation()
    analyses: list[Literal["interference"]] = Field(
        default_factory=list, description="measurements of the pools' weights that belong to the study"
    )

    @model_validator(mode="after")
    def _names_known(self) -> Self:
        for split in ("validation", "test"):
            for domain, benchmark in getattr(self.suites, split).items():
                _known(f"suites.{split}.{domain}", benchmark, self.benchmarks)
        for name, imported in self.experts.imported.items():
            _known(f"experts.imported.{name}.base", imported.base, self.bases)
            if imported.domain:
                _known(f"experts.imported.{name}.domain", imported.domain, self.domains)
            if name in self.domains:
                raise ValueError(f"experts.imported.{name} has the name of a domain")
        if self.experts.train and not self.domains:
            raise ValueError("experts.train needs domains")
        if any(method.by for method in self.methods.values()) and not self.suites.validation:
            raise ValueError("suites.validation is empty, but a method chooses by validation")
        return self


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
