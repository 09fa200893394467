"""The sections on what comes from the hub: bases and training sets."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from mergetime.config.fields import Address, Commit, Count, HubId, Parameters, PartName, PlainPath, PlainWords, Strict
from mergetime.core.words import nearest
from mergetime.data import registry
from mergetime.modalities.parts import DEFAULT, names


def _format(name: str) -> str:
    if name not in registry.names():
        raise ValueError(f"unknown data format {name!r}{nearest(name, registry.names())}")
    return name


DatasetFormat = Annotated[
    str, AfterValidator(_format), WithJsonSchema({"enum": list(registry.names()), "type": "string"})
]


def _modality(name: str) -> str:
    if name not in names():
        raise ValueError(f"unknown modality {name!r}{nearest(name, names())}")
    return name


Modality = Annotated[str, AfterValidator(_modality), WithJsonSchema({"enum": list(names()), "type": "string"})]


class Hub(Strict):
    """Where models and data sets come from: a hub's address, or a folder of repositories served on loopback."""

    endpoint: Address = Field("https://huggingface.co", description="address of the hub")
    folder: PlainPath | None = Field(
        None, description="a folder {models,datasets}/<owner>/<name>, instead of the endpoint"
    )


class Base(Strict):
    """A base model on the hub."""

    model: HubId = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    modality: Modality = Field(DEFAULT, description="what the base works on; causal_lm: chats")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="dtype that the base computes in")
    parameters: Parameters | None = Field(
        None,
        description="parameters of its language model: sizes what jobs ask of a cluster, and the plan; null: tiny",
    )
    family: PlainWords | None = Field(
        None, description="the models it is of, such as llama-3; for comparisons between bases"
    )
    tuning: Literal["pretrained", "instruct"] | None = Field(
        None, description="what its authors have trained it for; for comparisons between bases"
    )
    adapter_parameters: Parameters | None = Field(
        None, description="for the plan: parameters of a LoRA adapter of rank 1 on all projections"
    )


class Domain(Strict):
    """A domain: its training set on the hub, and how many examples of it to use."""

    dataset: HubId = Field(description="hub id")
    revision: Commit = Field(description="commit hash, 40 hexadecimal digits")
    config: PartName | None = Field(None, description="configuration of the data set, where it has several")
    split: PartName = Field("train", description="split of the data set that examples are drawn from")
    format: DatasetFormat = Field(description="how its columns become chat messages")
    train: Count = Field(description="training examples")
    validation: Count = Field(description="validation examples, which determine T*")
    max_tokens: Count = Field(2048, description="longer examples are dropped, in tokens of the chat")
