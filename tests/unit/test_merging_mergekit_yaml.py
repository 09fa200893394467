"""Files of mergekit's, as people publish them: merged as mergekit itself merges them, or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import merge_experts
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mergetime.core.errors import UserError
from mergetime.merging import mergekit_settings, mergekit_yaml
from mergetime.merging.layers import positions
from tests.unit.mergekit_models import (
    LAYERS,
    distance,
    run_mergekit,
    shapes,
    write_checkpoint,
    write_draws,
    write_models,
)

SEED = 5
LINEAR = """
models:
  - model: {code}
    parameters:
      weight: 1.0
  - model: {math}
    parameters:
      weight: 0.3
  - model: {safety}
    parameters:
      weight: 0.5
merge_method: linear
"""
SLERP = """
slices:
  - sources:
      - model: {code}
        layer_range: [0, LAYERS]
      - model: {math}
        layer_range: [0, LAYERS]
merge_method: slerp
base_model: BASE
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
""".replace("LAYERS", str(LAYERS))
TIES = """
models:
  - model: {base}
    # no parameters necessary for base model
  - model: {math}
    parameters:
      density: 0.5
      weight: 0.5
  - model: {code}
    parameters:
      density: 0.3
      weight: 0.3
merge_method: ties
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
"""
GRADIENTS = """
models:
  - model: {code}
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: {math}
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: {safety}
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: {base}
parameters:
  normalize: true
  int8_mask: true
"""
DARE = """
models:
  - model: {base}
  - model: {code}
    parameters:
      density: 0.53
      weight: 0.4
  - model: {math}
    parameters:
      density: 0.53
      weight: 0.3
  - model: {safety}
    parameters:
      density: 0.53
      weight: 0.3
merge_method: dare_ties
base_model: {base}
parameters:
  int8_mask: true
"""


def of_task_vectors(
    method: str, of_model: str, parameters: str = "", weights: tuple[float, ...] = (0.5, 1.4, -0.3)
) -> str:
    """A file for three experts with the same parameters but for their weights."""
    listed = "".join(
        f"  - model: {{{name}}}\n    parameters: {{{{weight: {weight}{', ' if of_model else ''}{of_model}}}}}\n"
        for name, weight in zip(("code", "math", "safety"), weights, strict=True)
    )
    return f"models:\n{listed}merge_method: {method}\nbase_model: {{base}}\nparameters: {{{{{parameters}}}}}\n"


FILES = {
    "linear": LINEAR,
    "linear_as_it_is": LINEAR.replace("1.0", "0.2") + "parameters: {{normalize: false}}\n",
    "linear_by_tensor": LINEAR.replace("weight: 1.0", "weight: [{{filter: mlp, value: [0.1, 0.9]}}, {{value: 0.4}}]"),
    "slerp_from_first": SLERP.replace("BASE", "{code}"),
    "slerp_from_second": SLERP.replace("BASE", "{math}"),
    "slerp_of_models": "models: [{{model: {code}}}, {{model: {math}}}]\nmerge_method: slerp\nbase_model: {code}\n"
    "parameters: {{t: 0.3}}\n",
    "ties": TIES,
    "ties_gradients": GRADIENTS,
    "ties_as_it_is": TIES.replace("normalize: true", "normalize: false\n  lambda: 0.7"),
    "ties_of_merge": "models: [{{model: {code}}}, {{model: {math}}}]\nmerge_method: ties\nbase_model: {base}\n"
    "parameters: {{density: [0, 0.6], weight: [{{filter: self_attn, value: 0.2}}, {{value: 1e-1}}]}}\n",
    "task_arithmetic": of_task_vectors("task_arithmetic", "", "lambda: 0.7"),
    "task_arithmetic_mean": of_task_vectors("task_arithmetic", "", "normalize: true"),
    "breadcrumbs": of_task_vectors("breadcrumbs", "density: 0.9, gamma: 0.01", "lambda: 1.2"),
    "breadcrumbs_crowded": of_task_vectors("breadcrumbs", "density: 0.9, gamma: 0.3", "normalize: true"),
    "breadcrumbs_ties": of_task_vectors("breadcrumbs_ties", "density: 0.6, gamma: 0.05", "int8_mask: true"),
    "breadcrumbs_ties_mean": of_task_vectors("breadcrumbs_ties", "density: 0.6", "normalize: true"),
    "model_stock": "models: [{{model: {code}}}, {{model: {math}}}, {{model: {safety}}}]\nmerge_method: model_stock\n"
    "base_model: {base}\n",
}
DROPPING = {
    "dare_ties": DARE,
    "dare_ties_mean": DARE.replace("int8_mask: true", "normalize: true\n  lambda: 0.8"),
    "dare_ties_gradients": DARE.replace("weight: 0.4", "weight: [0.1, 0.3, 0.9]").replace("0.53", "[0.5, 1]"),
    "dare_linear": of_task_vectors("dare_linear", "density: 0.4", "rescale: false"),
    "dare_linear_mean": of_task_vectors("dare_linear", "density: 0.4", "normalize: true"),
    "della": of_task_vectors("della", "density: 0.5, epsilon: 0.1", "lambda: 1.1", (0.5, 1.4, 0.3)),
    "della_linear": of_task_vectors("della_linear", "density: 0.7, epsilon: 0.2"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def filled(text: str, models: dict[str, Path], dtype: str = "float32") -> str:
    return text.format(**models) + (f"dtype: {dtype}\n" if dtype else "")


@pytest.fixture(scope="module")
def theirs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file and what mergekit made of it."""
    folder = tmp_path_factory.mktemp("mergekit")
    write_draws(folder, SEED)
    for name, text in (FILES | DROPPING).items():
        (folder / f"{name}.yaml").write_text(filled(text, models))
    (folder / "rounded.yaml").write_text(filled(TIES, models) + "out_dtype: bfloat16\n")
    run_mergekit(folder)
    return folder


def merged(file: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    merge_experts.run(["--mergekit", str(file), "--seed", str(SEED), "--out", str(out), *words])
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", [*FILES, *DROPPING])
def test_files_are_merged_as_mergekit_does(name: str, models: dict[str, Path], theirs: Path, tmp_path: Path) -> None:
    ours = merged(theirs / f"{name}.yaml", tmp_path / "out")
    wanted = load_file(theirs / name / "model.safetensors")
    base = load_file(models["base"] / "model.safetensors")
    assert ours.keys() == wanted.keys() == shapes().keys()
    for tensor in wanted:
        assert distance(ours[tensor], wanted[tensor]) < 1e-6, tensor
        # The update alone, which adding the base would hide.
        moved = wanted[tensor] - base[tensor]
        if bool(moved.any()):
            assert distance(ours[tensor] - base[tensor], moved) < 1e-5, tensor
        else:
            assert torch.equal(ours[tensor], base[tensor]), tensor


def test_no_two_files_give_the_same(models: dict[str, Path], theirs: Path) -> None:
    """Or agreeing with them would say little."""
    folders = [models["base"], *(theirs / name for name in (FILES | DROPPING))]
    ends = [
        torch.cat([tensor.flatten() for tensor in load_file(folder / "model.safetensors").values()])
        for folder in folders
    ]
    for place, first in enumerate(ends):
        for other, second in enumerate(ends[place + 1 :], place + 1):
            assert distance(first, second) > 1e-3, (folders[place].name, folders[other].name)


def test_the_dtype_written_is_that_of_the_file_or_of_the_base(
    models: dict[str, Path], theirs: Path, tmp_path: Path
) -> None:
    ours = merged(theirs / "rounded.yaml", tmp_path / "rounded")
    for tensor, wanted in load_file(theirs / "rounded/model.safetensors").items():
        assert ours[tensor].dtype == wanted.dtype == torch.bfloat16
        # A step of bfloat16, where fp32 sums in another order end on the other side of its middle.
        torch.testing.assert_close(ours[tensor].float(), wanted.float(), rtol=2**-8, atol=0)
    file = tmp_path / "none.yaml"
    file.write_text(filled(TIES, models, dtype=""))
    assert {tensor.dtype for tensor in merged(file, tmp_path / "none").values()} == {torch.float32}
    assert merged(file, tmp_path / "half", "--dtype", "float16")["lm_head.weight"].dtype == torch.float16


def content_of(text: str, models: dict[str, Path]) -> Any:
    return yaml.safe_load(text.format(**models))


def changed(text: str, models: dict[str, Path], change: dict[str, Any]) -> Any:
    """The content of a file with other values; keys lead into it by dots, and None removes."""
    content = content_of(text, models)
    for path, value in change.items():
        *above, last = path.split(".")
        inner = content
        for key in above:
            inner = inner[int(key)] if isinstance(inner, list) else inner.setdefault(key, {})
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return content


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (TIES, {"merge_method": "passthrough"}, "merge_method: 'passthrough' is not merged here"),
        (TIES, {"merge_method": "dare_tie"}, "merge_method: 'dare_tie' is not merged here; did you mean 'dare_ties'?"),
        (TIES, {"experts": []}, "experts: unknown key"),
        (TIES, {"models.1.weight": 1}, "models.1.weight: unknown key"),
        (TIES, {"modules": {"default": {}}}, "modules: is not done here; merge the whole model, by models"),
        (TIES, {"chat_template": "auto"}, "chat_template: is not done here; leave it out"),
        (TIES, {"slices": []}, "models: give either models or one slice with all layers"),
        (TIES, {"models.1.layer_range": [0, 3]}, "models.1.layer_range: is of slices; leave it out"),
        (TIES, {"base_model": None}, "base_model: is missing, and ties needs it; add it"),
        (TIES, {"base_model": "org/model"}, "base_model: org/model is no folder; download the model"),
        (TIES, {"models.1.model": "a+b+c"}, "models.1.model: a+b+c has more than one +"),
        (TIES, {"models.1.model": {"path": "x"}}, "models.1.model: {'path': 'x'} is no text"),
        (TIES, {"models.1.parameters.weight": None}, "models.1.parameters: weight is missing, and has no default"),
        (TIES, {"models.1.parameters.weight": "much"}, "models.1.parameters.weight: 'much' is not a number"),
        (TIES, {"models.1.parameters.weight": True}, "models.1.parameters.weight: True is not a number"),
        (TIES, {"models.1.parameters.weight": []}, "models.1.parameters.weight: is an empty list"),
        (
            TIES,
            {"models.1.parameters.weight": [{"filter": "mlp"}]},
            "models.1.parameters.weight: {'filter': 'mlp'} is no",
        ),
        (TIES, {"models.1.parameters.lambda": 1}, "models.1.parameters.lambda: mergekit reads it of the merge alone"),
        (TIES, {"parameters.densty": 1}, "parameters.densty: unknown parameter; did you mean 'density'?"),
        (TIES, {"parameters.normalize": 1}, "parameters.normalize: 1 is neither true nor false"),
        (TIES, {"parameters.rescale": True}, "parameters.rescale: entries that a method ranks are not rescaled here"),
        (TIES, {"dtype": "float64"}, "dtype: 'float64' is not one of float32, bfloat16, float16"),
        (TIES, {"tokenizer": {"source": "union", "tokens": {}}}, "tokenizer: only its source is read here"),
        (TIES, {"tokenizer_source": "org/model"}, "tokenizer_source: org/model is no folder"),
        (LINEAR, {"models.1.parameters.weight": -1.5}, "the weights sum to 0, so that their mean does not exist"),
        (LINEAR, {"parameters.normalize": False}, "parameters.normalize: is false, and the weights sum to 1.8"),
        (SLERP, {"parameters.t": 1.5}, "t: 1.5 is outside [0, 1]"),
        (SLERP, {"parameters.t": None}, "parameters: t is missing, and has no default"),
        (SLERP, {"slices.0.residual_weight": 0.1}, "slices.0.residual_weight: is not done here; leave it out"),
        (
            SLERP,
            {"slices.0.sources.1.layer_range": [0, 2]},
            "slices.0.sources.1.layer_range: [0, 2] is not the range of",
        ),
        (
            SLERP,
            {"slices.0.sources.0.layer_range": [1, 3]},
            "slices.0.sources.0.layer_range: [1, 3] is not the range of",
        ),
        (SLERP, {"slices.0.sources.0.layer_range": 3}, "slices.0.sources.0.layer_range: 3 is no first and last layer"),
        (DARE, {"models.1.parameters.density": -1, "merge_method": "della"}, None),
        (DARE, {"merge_method": "della", "models.1.parameters.density": 0.9}, "della: epsilon: 0.15 must be less than"),
    ],
)
def test_what_is_lacking_or_wrong_is_one_line(
    text: str, change: dict[str, Any], message: str | None, models: dict[str, Path]
) -> None:
    content = changed(text.replace("BASE", "{code}"), models, change)
    if message is None:
        mergekit_yaml.translated(content, "merge.yaml")
        return
    with pytest.raises(UserError, match=f"^merge.yaml: {re.escape(message)}") as refused:
        mergekit_yaml.translated(content, "merge.yaml")
    assert "\n" not in str(refused.value)


def test_more_that_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    twice = changed(TIES, models, {"models.1.model": str(models["code"])})
    with pytest.raises(UserError, match=r"^f: models\.2\.model: is also models\.1; every model counts once$"):
        mergekit_yaml.translated(twice, "f")
    two = content_of(SLERP.replace("BASE", "{code}"), models)
    with pytest.raises(UserError, match=r"^f: slices: there are 2; layers are not taken apart and stacked here"):
        mergekit_yaml.translated({**two, "slices": two["slices"] * 2}, "f")
    with pytest.raises(UserError, match=r"^f: is no mapping with merge_method and models"):
        mergekit_yaml.translated(["ties"], "f")
    with pytest.raises(UserError, match=r"^f: base_model: mergekit's linear averages it, too"):
        mergekit_yaml.translated(content_of(LINEAR + "base_model: {base}\n", models), "f")
    file = tmp_path / "short.yaml"
    file.write_text(SLERP.format(**models).replace("BASE", str(models["code"])).replace(f"[0, {LAYERS}]", "[0, 2]"))
    with pytest.raises(
        UserError, match=r"layer_range: ends at 2, and .* has 3 layers; parts of models are not stacked"
    ):
        mergekit_yaml.read(file)


def test_numbers_that_vary_are_checked_before_anything_is_written(models: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    text = DARE.replace("dare_ties", "della").replace("density: 0.53", "density: [0.5, 0.95]", 1)
    file.write_text(filled(text, models))
    wanted = (
        r"wide\.yaml: of model\.layers\.2\..*: della: epsilon: 0\.15 must be less than density and than 1 - density"
    )
    with pytest.raises(UserError, match=wanted):
        merged(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_setting_is_the_first_whose_filter_fits_and_a_list_runs_over_the_layers() -> None:
    setting = [{"filter": "mlp", "value": [0, 0.3, 0.7, 1]}, {"filter": "attn", "value": 2}]
    assert mergekit_settings.evaluated(setting, "layers.0.mlp.w", 0.5) == pytest.approx(0.5)
    assert mergekit_settings.evaluated(setting, "layers.0.mlp.w", 1.0) == 1.0
    assert mergekit_settings.evaluated(setting, "layers.0.attn.w", 0.5) == 2
    assert mergekit_settings.evaluated(setting, "norm", 0.0) is None
    assert mergekit_settings.evaluated({"filter": "*", "value": 3}, "norm", 0.0) == 3
    assert [mergekit_settings.evaluated([True, False, True], "norm", place) for place in (0.0, 0.7, 1.0)] == [
        True,
        False,
        True,
    ]


def test_positions_are_those_of_the_outermost_layers() -> None:
    names = ["model.embed.weight", *(f"model.layers.{n}.experts.7.w" for n in range(3)), "mtp.layers.0.w", "h.1.w"]
    assert positions(names) == {names[1]: 0.0, names[2]: 0.5, names[3]: 1.0, "mtp.layers.0.w": 1.0, "h.1.w": 1.0}


def test_the_record_has_the_file_and_notes_are_printed(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gradients.yaml"
    file.write_text(filled(GRADIENTS, models))
    merged(file, tmp_path / "out")
    record = json.loads((tmp_path / "out/merged.json").read_text())
    assert record["config"]["params"] is None
    assert record["config"]["mergekit"] == yaml.safe_load(file.read_text())
    assert "mergekit's YAML" in record["inputs"]
    assert f"note: {file}: parameters.int8_mask: changes no number of ties\n" in capsys.readouterr().out


def test_what_the_file_decides_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        merge_experts.run(["--mergekit", "f", "--set", "density=1", "--out", "o"])
    assert "--set is decided by the file of --mergekit; leave it out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        merge_experts.run(["--out", "o"])
    assert "required: --expert, --method (or --mergekit)" in capsys.readouterr().err


def test_vocabularies_must_be_alike_where_a_tokenizer_is_chosen(models: dict[str, Path], tmp_path: Path) -> None:
    folders = write_models(tmp_path)
    for name, folder in folders.items():
        words = {"a": 0, "b": 1} if name != "code" else {"b": 0, "a": 1}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
    file = tmp_path / "f.yaml"
    for source in ("union", "base", str(folders["code"])):
        file.write_text(filled(TIES, folders) + f"tokenizer_source: {source}\n")
        with pytest.raises(
            UserError, match=r"tokenizer_source: the tokenizer of code is not that of .*base; embeddings"
        ):
            mergekit_yaml.read(file)
    (folders["code"] / "tokenizer.json").write_bytes((folders["base"] / "tokenizer.json").read_bytes())
    assert mergekit_yaml.read(file).tokenizer_from == "code"


ADAPTED = """
models: [{{model: "{base}+{first}", parameters: {{weight: 0.6}}}}, {{model: "{base}+{second}", parameters: {{weight: 0.3}}}}]
merge_method: METHOD
base_model: {base}
parameters: {{density: 0.4}}
"""


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_adapters_are_merged_as_the_models_they_make(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    named = {"base": models["base"], "first": tmp_path / "first", "second": tmp_path / "second"}
    whole = {"base": models["base"], "first": tmp_path / "whole_first", "second": tmp_path / "whole_second"}
    base = load_file(models["base"] / "model.safetensors")
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        weights: dict[str, torch.Tensor] = {}
        adapted = dict(base)
        for key in base:
            if "_proj" in key:
                a = torch.randn(2, base[key].shape[1], generator=generator)
                b = torch.randn(base[key].shape[0], 2, generator=generator) / 20
                prefix = f"base_model.model.{key.removesuffix('.weight')}"
                weights |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
                adapted[key] = base[key] + b @ a
        named[name].mkdir()
        save_file(weights, named[name] / "adapter_model.safetensors")
        (named[name] / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
        write_checkpoint(whole[name], adapted)
    text = ADAPTED.replace("METHOD", method).replace("density: 0.4", "t: 0.3" if method == "slerp" else "density: 0.4")
    if method == "linear":
        text = text.replace("base_model: {base}\n", "").replace(
            "models: [", "models: [{{model: '{base}', parameters: {{weight: 0.5}}}}, "
        )
    elif method == "slerp":
        text = re.sub(r", parameters: \{\{weight[^}]*\}\}", "", text).replace(
            "base_model: {base}", "base_model: '{base}+{second}'"
        )
    (tmp_path / "adapters.yaml").write_text(filled(text, named))
    (tmp_path / "whole.yaml").write_text(filled(text.replace("{base}+", ""), whole))
    ours, wanted = (merged(tmp_path / f"{name}.yaml", tmp_path / f"out_{name}") for name in ("adapters", "whole"))
    for key in wanted:
        assert distance(ours[key], wanted[key]) < 1e-6, key
    with pytest.raises(UserError, match=r"is a whole model, and .* is an adapter; merge one kind at a time"):
        mergekit_yaml.translated(content_of(text.replace("{base}+{first}", str(models["code"])), named), "f")
