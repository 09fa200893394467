"""The form of an architecture file, and what it says of each tensor.

A file names tensors as the loaded model does (its ``state_dict``), by patterns of whole names: ``#`` is a number, ``*``
anything between two dots, ``**`` anything at all, ``{a,b}`` one of several texts. ``renames`` brings the names of
checkpoints and adapters into that form. A tensor that matches no pattern is refused, never guessed.

Which methods look at the roles:

- Methods on singular vectors (TSV-Merge, Iso-C, Subspace Boosting), KnOTS and RegMean are defined for the matrices of
  linear layers, ``linear``. A map between features has a spectrum that means something; a table of rows (``embedding``,
  ``position``, ``head``, ``router``) does not. All other roles are merged by weights alone: averaged, or summed where
  the method extends Task Arithmetic. With ``matrices: all``, as in their authors' code, TSV-Merge and Iso-C take every
  tensor with two dimensions for a matrix, whatever its role.
- ``expert_bank`` is a stack of such matrices [experts of the model, outputs, inputs], and spectral methods treat every
  matrix of it by itself. RegMean refuses it: nothing measures the inputs of one matrix of a bank.
- Where a file says ``transposed``, linear weights are [inputs, outputs] (GPT-2's Conv1D). Singular values do not depend
  on that; RegMean, whose Gram matrices are of the inputs, turns such weights over.
- ``buffer`` is no weight (rotary frequencies, position ids): the base's stay, and an expert may lack them.
- Where a method's parameter ``tables`` says so, as in MergeBench, ``embedding`` and ``head`` stay those of the base.
- All other methods treat every floating-point tensor alike.

Parts of a model that its modality does not use (``vision_tower``, ``projector``, ``mtp`` of a language model,
``text_tower`` of an image classifier) are optional: an expert may lack them, and then the base's stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mergetime.core.errors import UserError

Part = Literal["vision_tower", "projector", "mtp", "text_tower"]
Kind = Literal[
    "embedding", "position", "head", "norm", "linear", "expert_bank", "router", "convolution", "vector", "buffer"
]
Role = Kind | Part
Modality = Literal["causal_lm", "seq2seq_lm", "image_classifier", "text_classifier"]

MATRICES: frozenset[Role] = frozenset({"linear", "expert_bank"})
"""Roles of the weights of linear layers, one matrix or a bank of them."""
_UNUSED: dict[Modality, frozenset[Role]] = {
    "causal_lm": frozenset({"vision_tower", "projector", "mtp"}),
    "seq2seq_lm": frozenset({"vision_tower", "projector", "mtp"}),
    "text_classifier": frozenset({"vision_tower", "projector", "mtp"}),
    "image_classifier": frozenset({"text_tower"}),
}
"""The parts that a modality does not use."""
_DIMENSIONS: dict[Role, tuple[int, ...]] = {
    "embedding": (2,),
    "head": (2,),
    "linear": (2,),
    "router": (2,),
    "expert_bank": (3,),
    "norm": (1,),
    "convolution": (3, 4, 5),
}
"""How many dimensions tensors of a role have; of the others, any number."""
_PIECE = re.compile(r"\*\*|\*|#|\{[^{}]*\}|[^*#{}]+")


def expression(pattern: str) -> str:
    """The regular expression of a pattern.

    Raises:
        ValueError: where braces are not closed.
    """
    pieces = _PIECE.findall(pattern)
    if "".join(pieces) != pattern or not pattern:
        raise ValueError(f"pattern {pattern!r} has a brace that is not closed, or is empty")
    wild = {"**": ".*", "*": r"[^.]*", "#": r"\d+"}
    return "".join(
        wild.get(piece)
        or (f"(?:{'|'.join(map(re.escape, piece[1:-1].split(',')))})" if piece[0] == "{" else re.escape(piece))
        for piece in pieces
    )


def _checked(pattern: str) -> str:
    expression(pattern)
    return pattern


Pattern = Annotated[str, AfterValidator(_checked)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]


class Family(BaseModel):
    """An architecture file.

    Attributes:
        model_types: of config.json, which this file serves.
        modality: what such models are, unless the study says otherwise.
        renames: a text at the beginning of a name, or anywhere in it where the text begins with a dot, and what takes
            its place; in order, each once.
        input_table: the embedding to which the head may be tied.
        head: the head that a tied checkpoint may lack or repeat.
        always_tied: whether transformers writes ``tie_word_embeddings: true`` into every config.json of the family,
            even where the head is a tensor of its own.
        transposed: whether linear weights are [inputs, outputs].
        banks: the parameters of a module of experts, in the order in which the model makes them, each with the matrices
            of an expert that checkpoints hold in its place: ``#.NAME.weight`` in that module, their rows together.
        parts: patterns of the tensors of each part; a part that the modality does not use is the role of its tensors.
        roles: patterns of the tensors of each role. The first pattern that matches counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_types: Annotated[tuple[str, ...], Field(min_length=1)]
    modality: Modality = "causal_lm"
    renames: dict[Annotated[str, Field(min_length=1)], str] = {}
    input_table: str | None = None
    head: str | None = None
    always_tied: bool = False
    transposed: bool = False
    banks: dict[str, tuple[str, ...]] = {}
    parts: dict[Part, Patterns] = {}
    roles: dict[Kind, Patterns]


@dataclass(frozen=True)
class Place:
    """Where a matrix of its own lies in the bank to which transformers stacks it.

    Attributes:
        bank: the canonical name of the bank [experts of the model, outputs, inputs].
        expert: its number among the experts of the model.
        part: its number among the matrices of one expert, of which there are ``parts``, equally high.
    """

    bank: str
    expert: int
    part: int
    parts: int

    def rows(self, height: int) -> slice:
        """Its rows in a bank whose matrices have this height."""
        return slice(self.part * height // self.parts, (self.part + 1) * height // self.parts)


@dataclass(frozen=True)
class Architecture:
    """The roles of the tensors of one kind of model, used for one modality.

    Attributes:
        name: the path of its file, from the working folder where that is above it.
        family: what the file says.
        modality: what the model is used as.
    """

    name: str
    family: Family
    modality: Modality

    @cached_property
    def _matchers(self) -> list[tuple[Role, re.Pattern[str]]]:
        unused = {part: names for part, names in self.family.parts.items() if part in _UNUSED[self.modality]}
        patterns: list[tuple[Role, Sequence[str]]] = [*unused.items(), *self.family.roles.items()]
        return [(role, re.compile("|".join(map(expression, names)))) for role, names in patterns]

    @property
    def head(self) -> str | None:
        """The output head, which a tied checkpoint may lack or repeat."""
        return self.family.head

    @property
    def input_table(self) -> str | None:
        """The input embedding, to which the head may be tied."""
        return self.family.input_table

    @property
    def always_tied(self) -> bool:
        """Whether ``tie_word_embeddings`` of config.json says nothing, because transformers always writes true."""
        return self.family.always_tied

    @property
    def transposed(self) -> bool:
        """Whether linear weights are [inputs, outputs], as those of GPT-2's Conv1D."""
        return self.family.transposed

    @property
    def banks(self) -> dict[str, tuple[str, ...]]:
        """The banks of a module of experts, from the first, each with an expert's matrices in split checkpoints."""
        return self.family.banks

    def canonical(self, key: str) -> str:
        """The name of a tensor or module in the loaded model, from its name in a checkpoint or an adapter."""
        for old, new in self.family.renames.items():
            if key.startswith(old) or old[0] == ".":
                key = key.replace(old, new, 1)
        return key

    def place(self, name: str) -> Place | None:
        """Where in a bank the matrix of this canonical name belongs; None where it is no part of one."""
        for bank, parts in self.banks.items():
            for part, end in enumerate(parts):
                if matched := re.fullmatch(rf"(.*\.)(\d+)\.{re.escape(end)}\.weight", name):
                    return Place(f"{matched[1]}{bank}", int(matched[2]), part, len(parts))
        return None

    def matrices(self, name: str, shape: Sequence[int]) -> dict[str, Place]:
        """The matrices of which the bank of this canonical name and shape is made, by theirs; none where it is none."""
        module, _, bank = name.rpartition(".")
        parts = self.banks.get(bank, ())
        return {
            f"{module}.{expert}.{end}.weight": Place(name, expert, part, len(parts))
            for expert in range(shape[0] if len(shape) == 3 else 0)
            for part, end in enumerate(parts)
        }

    def known_role(self, name: str) -> Role | None:
        """The role of a tensor, by its canonical name; None where no pattern matches."""
        return next((role for role, matcher in self._matchers if matcher.fullmatch(name)), None)

    def role(self, name: str, shape: Sequence[int] | None = None) -> Role:
        """What a tensor is for, by its canonical name; its shape, where given, must suit that.

        Raises:
            UserError: where no pattern matches, or the tensor has other dimensions than its role.
        """
        role = self.known_role(name)
        if role is None:
            raise UserError(
                f"{name}: {self.name} has no role for it; add its name there, or give --architecture a file that has it"
            )
        wanted = _DIMENSIONS.get(role)
        if wanted and shape is not None and len(shape) not in wanted:
            raise UserError(
                f"{name}: has {len(shape)} dimensions, but {self.name} calls it {role}; correct the file, or give "
                "--architecture another"
            )
        return role

    def is_optional(self, role: Role) -> bool:
        """Whether an expert may lack such tensors: the base's stay."""
        return role in _UNUSED[self.modality] or role == "buffer"

    def may_lack(self, name: str) -> bool:
        """Whether an expert may lack this tensor; False where it is unknown."""
        role = self.known_role(name)
        return role is not None and self.is_optional(role)

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is no weight: the base's stays."""
        return self.known_role(name) == "buffer"

    def is_head(self, name: str) -> bool:
        """Whether this is the output head, which a tied checkpoint may lack or repeat."""
        return name == self.head

    def may_be_by_token(self, name: str) -> bool:
        """Whether a tensor may have a row for each token, by its name: an embedding, the head, a bias of the head."""
        if self.known_role(name) == "embedding" or self.is_head(name):
            return True
        module = (self.head or "").removesuffix(".weight")
        # BERT's head has its bias one level higher: cls.predictions.bias of cls.predictions.decoder.
        return self.head is not None and name in (f"{module}.bias", f"{module.rpartition('.')[0]}.bias")
