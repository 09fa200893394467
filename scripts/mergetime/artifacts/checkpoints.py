"""Full checkpoints as transformers saves them: safetensors in one file or in shards, opened without reading weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetime.architectures.architecture import Architecture, Place
from mergetime.architectures.files import architecture_of
from mergetime.artifacts.files import FLOATS, is_plain_name, read_json, recorded_base, refuse_empty, safetensors_file
from mergetime.artifacts.names import MODEL_CONFIG, MODEL_INDEX, MODEL_WEIGHTS, left_aside, model_weights
from mergetime.artifacts.vocabulary import ExtraRows, difference, differs_by_rows, of_vocabulary, rows_of
from mergetime.core.errors import UserError

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What DataParallel, torch.compile and FSDP put before names."""
MERGED = "mergetime_version"
"""The key of config.json that marks a checkpoint as a merge."""


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; tensors are views of the mapped files.

    Attributes:
        name: of the expert; ``base`` for the base.
        folder: where it is.
        config: its config.json.
        architecture: what its tensors are for.
        base_sha256: of an expert, the base that its training noted.
        shapes: canonical tensor name to shape; floating-point tensors, without a head that repeats the embedding.
        keys: canonical tensor name to the name in the file.
        integers: names of the tensors that are no floating-point weights but integers or buffers: the base's stay.
        files: canonical tensor name to the open file.
        left_aside: files of weights beside those that transformers reads.
        tied: tensors that are no file's, and the tensor that each of them equals.
        places: tensors that are read from a bank in the file, and where they lie in it.
        vocabulary: of an expert, how many rows its vocabulary has; None: as many as the base's.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture
    base_sha256: str | None
    shapes: Mapping[str, tuple[int, ...]]
    keys: Mapping[str, str]
    integers: frozenset[str]
    files: Mapping[str, Any]
    left_aside: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    vocabulary: int | None = None

    def __str__(self) -> str:
        return _owner(self.name, self.folder)

    @property
    def keys_kept(self) -> list[str]:
        """The names of all tensors that a checkpoint made of this one has, integers included."""
        return [name for name in self.keys if name in self.shapes or name in self.integers]

    def holds(self, name: str) -> bool:
        """Whether it has the tensor as weights of its own."""
        return name in self.shapes

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in the checkpoint's dtype: a view of the mapped file, not to be written to."""
        name = self.tied.get(name, name)
        if name in self.places:
            place = self.places[name]
            bank = self.tensor(place.bank)
            return bank[place.expert, place.rows(bank.shape[1])]
        tensor: torch.Tensor = self.files[name].get_tensor(self.keys[name])
        return tensor

    @property
    def banks(self) -> frozenset[str]:
        """The banks that its files hold stacked."""
        return frozenset(name for name, shape in self.shapes.items() if self.architecture.matrices(name, shape))

    def split(self) -> Checkpoint:
        """The same model with every matrix of its banks by itself, as checkpoints before transformers 5 have them."""
        shapes, keys, places = dict(self.shapes), dict(self.keys), dict(self.places)
        for bank in self.banks:
            _, height, width = shapes.pop(bank)
            key = keys[bank]
            for name, place in self.architecture.matrices(bank, self.shapes[bank]).items():
                shapes[name], places[name] = (height // place.parts, width), place
                keys[name] = f"{key.removesuffix(bank)}{name}" if key.endswith(bank) else name
        return replace(self, shapes=shapes, keys=keys, places=places)

    def rows_beyond(self, name: str, count: int) -> torch.Tensor | None:
        """The rows of a tensor after the base's ``count``, in fp32; None where it has no more rows."""
        if not self.holds(name) or self.shapes[name][0] <= count:
            return None
        return self.tensor(name)[count:].float()

    def untied(self) -> Checkpoint:
        """The same model with a head of its own, equal to the embedding to which it was tied.

        Raises:
            UserError: where the architecture has no such head.
        """
        head, table = self.architecture.head, self.architecture.input_table
        if head is None or table is None or self.architecture.always_tied:
            raise UserError(f"{self}: {self.architecture.name} has no head that can be untied from the embedding")
        # Where the text model is nested under a name, its head mostly is, too.
        key = self.keys[table]
        named = f"{key.removesuffix(table)}{head}" if key.endswith(table) else head
        text = self.config.get("text_config")
        untied = {"tie_word_embeddings": False}
        return replace(
            self,
            config={**self.config, **untied, **({"text_config": text | untied} if isinstance(text, dict) else {})},
            shapes={**self.shapes, head: self.shapes[table]},
            keys={head: named, **self.keys},
            tied={head: table},
        )

    def setting(self, key: str) -> Any:
        """A setting of the (text) model from config.json; None where it is not there."""
        text = self.config.get("text_config")
        return self.config.get(key, text.get(key) if isinstance(text, dict) else None)

    @property
    def ties(self) -> bool | None:
        """Whether config.json ties the head to the embedding; None where it does not say, or is not to be believed."""
        if self.architecture.always_tied:
            return None
        tied = self.setting("tie_word_embeddings")
        return tied if isinstance(tied, bool) else None


@contextmanager
def open_checkpoint(name: str, folder: Path, architecture: Architecture | None = None) -> Iterator[Checkpoint]:
    """Open the checkpoint in a folder.

    Args:
        name: of the expert; ``base`` for the base.
        folder: where it is.
        architecture: what its tensors are for; None: what the model type in its config.json says.

    Raises:
        UserError: where config.json or a shard is absent or damaged, the index and the shards disagree, or no
            architecture file serves the model type.
    """
    import torch

    owner = _owner(name, folder)
    config = read_json(folder / MODEL_CONFIG, owner)
    known = architecture or _architecture(owner, config)
    with ExitStack() as stack:
        shapes: dict[str, tuple[int, ...]] = {}
        keys: dict[str, str] = {}
        files: dict[str, Any] = {}
        integers = set()
        weight_map = _weight_map(owner, folder)
        weights = shards(owner, folder)
        for path in weights:
            file = stack.enter_context(safetensors_file(path, owner))
            for key in file.keys():  # noqa: SIM118
                canonical = known.canonical(key)
                if canonical in keys:
                    raise UserError(f"{owner}: {key} is in {path.name} and once more; remove the stale file")
                keys[canonical], files[canonical] = key, file
                view = file.get_slice(key)
                refuse_empty(owner, key, view.get_shape())
                if known.is_buffer(canonical):
                    integers.add(canonical)
                elif view.get_dtype() in FLOATS:
                    shapes[canonical] = tuple(view.get_shape())
                elif view.get_dtype().startswith(("F8", "F6", "F4", "I8", "U8")) or key.endswith(("qweight", "qzeros")):
                    raise UserError(f"{owner}: {key} is quantised ({view.get_dtype()}); merge 16- or 32-bit weights")
                else:
                    integers.add(canonical)
        for key, shard in weight_map.items():
            if keys.get(known.canonical(key)) != key:
                raise UserError(f"{owner}: {key} is not in {shard}, though {MODEL_INDEX} says so; fetch them again")
        opened = Checkpoint(
            name,
            folder,
            config,
            known,
            recorded_base(owner, folder),
            shapes,
            keys,
            frozenset(integers),
            files,
            left_aside(folder, weights),
        )
        _drop_tied_head(opened, shapes, torch.equal)
        yield opened


def check_roles(opened: Checkpoint) -> None:
    """Refuse a checkpoint with a tensor of which its architecture does not say what it is for.

    Raises:
        UserError: naming the tensor.
    """
    try:
        for name in opened.keys:
            opened.architecture.role(name, opened.shapes.get(name))
    except UserError as error:
        raise UserError(f"{opened}: {error}") from error


def check_expert(expert: Checkpoint, base: Checkpoint, extra_rows: ExtraRows = "refuse") -> Checkpoint:
    """Refuse an expert whose tensors are not those of the base; ``extra_rows`` says whether rows of tokens may differ.

    Returns:
        The expert, with how many rows its vocabulary has.

    Raises:
        UserError: naming the expert and the first tensor or setting that differs.
    """
    import torch

    ties = (expert.ties, base.ties)
    if None not in ties and ties[0] != ties[1]:
        raise UserError(
            f"{expert}: tie_word_embeddings is {str(ties[0]).lower()}, in {base} it is {str(ties[1]).lower()}; "
            "one of them has a head of its own"
        )
    known = base.architecture
    for name in [*expert.shapes, *expert.integers]:
        if name not in base.shapes and name not in base.integers:
            if known.is_buffer(name):
                continue
            hint = "it is untied, the base is tied" if known.is_head(name) else _origin(expert.keys[name])
            raise UserError(f"{expert}: has {name}, which {base} has not; {hint}")
        if (name in expert.integers) != (name in base.integers):
            raise UserError(f"{expert}: {name} holds integers, or those of {base} are integers; they must be alike")
    for name, shape in base.shapes.items():
        if name not in expert.shapes:
            if known.is_optional(known.role(name, shape)):
                continue
            raise UserError(f"{expert}: lacks {name}, which {base} has")
        by_rows = differs_by_rows(base, name, expert.shapes[name])
        if expert.shapes[name] != shape and not (by_rows and extra_rows != "refuse"):
            sizes = f"{_size(expert.shapes[name])}, in {base} it is {_size(shape)}"
            hint = difference(expert.shapes[name][0], shape[0]) if by_rows else "it belongs to another base"
            raise UserError(f"{expert}: {name} is {sizes}; {hint}")
    for name in sorted(base.integers & expert.integers):
        tensors = expert.tensor(name), base.tensor(name)
        # Rotary frequencies are made anew from the config, whatever a file holds, and rounded as its dtype has it.
        if all(tensor.is_floating_point() for tensor in tensors):
            continue
        if tensors[0].dtype != tensors[1].dtype or not torch.equal(*tensors):
            raise UserError(f"{expert}: {name} holds integers that differ from those of {base}")
    tokens = [(name, shape[0]) for name, shape in expert.shapes.items() if of_vocabulary(base, name)]
    rows = rows_of(str(expert), tokens)
    return replace(expert, vocabulary=None if all(base.shapes[name][0] == rows for name, _ in tokens) else rows)


def _origin(key: str) -> str:
    """Where a tensor comes from that the base has not, by its name in the file."""
    wrapper = next((prefix for prefix in _WRAPPERS if key.startswith(prefix)), None)
    if wrapper is None:
        return "it belongs to another base"
    return f"torch puts {wrapper} before the names of a wrapped model; save the model that is inside"


def _drop_tied_head(opened: Checkpoint, shapes: dict[str, tuple[int, ...]], equal: Any) -> None:
    """A head that only repeats the embedding is no tensor of its own, unless the config says that it is."""
    head, table = opened.architecture.head, opened.architecture.input_table
    if opened.ties is False or head not in shapes or table not in shapes:
        return
    if not equal(opened.tensor(head), opened.tensor(table)):
        if opened.ties is None:
            return
        raise UserError(
            f"{opened}: {head} differs from {table}, though config.json ties them; "
            "say tie_word_embeddings: false or remove the head"
        )
    del shapes[head]


def _architecture(owner: str, config: Mapping[str, Any]) -> Architecture:
    try:
        return architecture_of(config)
    except UserError as error:
        raise UserError(f"{owner}: {error}") from error


def shards(owner: str, folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint that transformers reads; ``owner`` begins the message.

    Raises:
        UserError: where there are none, or an index is damaged.
    """
    _weight_map(owner, folder)
    weights = model_weights(folder)
    if not weights:
        raise UserError(
            f"{owner}: holds no .safetensors; weights of other kinds are not read, scripts/convert_weights.py converts "
            ".bin files"
        )
    return weights


def _weight_map(owner: str, folder: Path) -> dict[str, str]:
    """Tensor to shard, as the index has it; empty where transformers does not read one."""
    if (folder / MODEL_WEIGHTS).is_file() or not (folder / MODEL_INDEX).is_file():
        return {}
    weight_map = read_json(folder / MODEL_INDEX, owner).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{owner}: {MODEL_INDEX} has no weight_map; fetch it again")
    for name in weight_map.values():
        if not is_plain_name(name):
            raise UserError(f"{owner}: {MODEL_INDEX} names {name!r}, which is not the name of a file beside it")
    return dict(weight_map)


def _owner(name: str, folder: Path) -> str:
    return f"base {folder}" if name == "base" else f"expert {name} ({folder})"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
