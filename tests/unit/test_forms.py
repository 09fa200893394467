"""The forms of experts and merges: which files a folder holds, what modes and pools make, and that names stay here."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest

from mergetime.artifacts import forms, names
from mergetime.artifacts.forms import ADAPTER, CHECKPOINT, DELTA, FORMS, Form, form_of
from mergetime.core.errors import UserError
from mergetime.core.registries import SCRIPTS

FILE_NAMES = [*dict.fromkeys(file for form in FORMS.values() for file in form.files), names.MODEL_INDEX]
SPELLED = re.compile(rf"^(?:\S*[/.*])?(?:{'|'.join(map(re.escape, FILE_NAMES))}|model[-*]\S*\.safetensors)(?:\.\w+)?$")


def folder_with(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize(
    ("names", "form"),
    [
        ([*ADAPTER.files, "expert.json"], ADAPTER),
        (["adapter_config.json"], ADAPTER),
        (["adapter_model.safetensors"], ADAPTER),
        (["adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer_config.json"], ADAPTER),
        (["task_vector.safetensors", "merged.json"], DELTA),
        (["task_vector.safetensors", "config.json"], DELTA),
        (["model.safetensors", "config.json"], CHECKPOINT),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"], CHECKPOINT),
        (["weights.safetensors", "config.json"], CHECKPOINT),
    ],
)
def test_a_folder_holds_one_form(names: list[str], form: Form, tmp_path: Path) -> None:
    assert form_of(folder_with(tmp_path, *names)) is form


@pytest.mark.parametrize("names", [[], ["model.safetensors", "tokenizer_config.json"], ["merged.json"]])
def test_a_folder_without_a_form_is_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        form_of(folder_with(tmp_path, *names))
    assert str(refused.value) == (
        f"{tmp_path}: there is no adapter_config.json, task_vector.safetensors or config.json, so it is neither an "
        "adapter, a task vector nor a full checkpoint"
    )


@pytest.mark.parametrize(
    ("names", "both"),
    [
        ([*ADAPTER.files, *DELTA.files], "task_vector.safetensors and adapter_model.safetensors"),
        (
            ["task_vector.safetensors", "model-00001-of-00002.safetensors", "config.json"],
            "task_vector.safetensors and model-00001-of-00002.safetensors",
        ),
    ],
)
def test_files_of_two_forms_are_refused(names: list[str], both: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^expert code: holds both ") as refused:
        form_of(folder_with(tmp_path, *names), "expert code")
    assert both in str(refused.value)
    assert str(refused.value).endswith("; remove the one that is stale")


def test_an_adapter_beside_a_model_is_an_adapter_as_transformers_has_it(tmp_path: Path) -> None:
    assert form_of(folder_with(tmp_path, *ADAPTER.files, *CHECKPOINT.files)) == ADAPTER


def test_a_pool_of_task_vectors_is_refused(tmp_path: Path) -> None:
    from mergetime.merging.opening import open_pool

    folder = folder_with(tmp_path, "task_vector.safetensors")
    with pytest.raises(UserError, match="expert code: is a task vector; give the folder of an adapter or of a full"):
        open_pool([("code", folder)]).__enter__()


def test_a_mode_has_a_form() -> None:
    assert [forms.trained_as(mode).name for mode in get_args(forms.Mode)] == ["adapter", "adapter", "checkpoint"]


def test_a_merge_has_the_form_that_its_method_writes_unless_its_members_are_whole_models() -> None:
    assert forms.merged_form("adapter", ADAPTER) is ADAPTER
    assert forms.merged_form("delta", ADAPTER) is DELTA
    assert forms.merged_form("adapter", CHECKPOINT) is DELTA


def test_every_form_names_its_weights_first() -> None:
    assert all(form.files[0] == form.weights and FORMS[form.name] is form for form in FORMS.values())


def test_files_of_a_form_are_those_that_are_there(tmp_path: Path) -> None:
    shards = [names.shard_name(number, 2) for number in range(2)]
    folder_with(tmp_path, *shards, "model.safetensors.index.json", "config.json", "adapter_config.json", "other.json")
    found = [file.name for file in forms.files_in(tmp_path, CHECKPOINT)]
    assert found == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ]
    assert forms.files_in(tmp_path, DELTA) == []
    assert names.shard_name(0, 1) == "model.safetensors"


def test_weight_files_are_tensors_and_configs(tmp_path: Path) -> None:
    folder_with(tmp_path, *ADAPTER.files, "expert.json", "tokenizer.json")
    assert [file.name for file in forms.weight_files(tmp_path)] == list(ADAPTER.files)
    assert forms.weight_files(tmp_path / "absent") == []


def test_the_digest_is_of_the_only_file_or_of_the_shards_digests(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = folder_with(tmp_path / "one", "model.safetensors", "config.json")
    assert names.digest(one) == sha256(b"model.safetensors").hexdigest()
    (tmp_path / "two").mkdir()
    two = folder_with(tmp_path / "two", "b.safetensors", "a.safetensors")
    digests = "".join(sha256(name).hexdigest() for name in (b"a.safetensors", b"b.safetensors"))
    assert names.digest(two) == sha256(digests.encode()).hexdigest()


def test_forms_are_known_without_torch() -> None:
    code = "import sys, mergetime.artifacts.forms; assert not {'torch', 'safetensors', 'peft'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def strings_outside(folders: tuple[str, ...]) -> Iterator[tuple[Path, str, ast.AST]]:
    """Every string in the scripts and the package, but in these folders of it, with the file and what holds it."""
    for file in sorted(SCRIPTS.rglob("*.py")):
        if not file.relative_to(SCRIPTS).as_posix().startswith(folders):
            for node in ast.walk(ast.parse(file.read_text())):
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.Constant) and isinstance(child.value, str):
                        yield file, child.value, node


@pytest.mark.parametrize(
    "spelled", [*FILE_NAMES, "out/config.json", "/model.safetensors", ".task_vector.safetensors.part", "*config.json"]
)
def test_a_spelled_file_name_is_recognised(spelled: str) -> None:
    assert SPELLED.search(spelled)


@pytest.mark.parametrize(
    "text", ["fetched.json", "*.safetensors", "gram.safetensors", "hub id, for adapter_config.json"]
)
def test_other_texts_are_no_file_names(text: str) -> None:
    assert not SPELLED.search(text)


def test_no_file_of_an_artifact_is_called_by_its_name_elsewhere() -> None:
    """The demo writes models as others would, and knows their files by itself."""
    strings = strings_outside(("mergetime/artifacts/", "mergetime/demo/"))
    assert [f"{file.name}: {text}" for file, text, _ in strings if SPELLED.search(text)] == []


def test_nobody_else_asks_whether_all_weights_were_trained() -> None:
    strings = strings_outside(("mergetime/artifacts/forms.py",))
    asked = [file.name for file, text, node in strings if text == "full" and isinstance(node, ast.Compare)]
    assert asked == []
