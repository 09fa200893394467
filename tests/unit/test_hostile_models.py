"""Templates that never end, configs that describe what no machine holds or another model: each ends in one line."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from jinja2.exceptions import TemplateError
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mergetime.artifacts.companions import companions, tokenizer_differs
from mergetime.artifacts.names import model_weights
from mergetime.core.errors import UserError
from mergetime.modalities.causal_lm import loading, rendering
from mergetime.modalities.causal_lm.loading import load_base
from mergetime.modalities.causal_lm.reading import reader

ROOT = Path(__file__).parents[2]
BASE = ROOT / "config/demo_base"


def copied(folder: Path, *changed: str) -> Path:
    """The demo's base, by links, without the files that are to change."""
    folder.mkdir()
    for file in BASE.iterdir():
        if file.name not in changed:
            (folder / file.name).symlink_to(file)
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    """The demo's base with other settings in its config.json."""
    copied(folder, "config.json")
    config = json.loads((BASE / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def with_template(folder: Path, template: str) -> Path:
    """The demo's base with another chat template."""
    copied(folder, "chat_template.jinja")
    (folder / "chat_template.jinja").write_text(template)
    return folder


CHAT = [{"role": "user", "content": "How many days are in a week?"}]


def refused_chat(folder: Path) -> str:
    """What is said of a chat that is not rendered, in one line."""
    with pytest.raises(UserError) as caught:
        reader(folder).apply_chat_template(CHAT, tokenize=False)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"model {folder}: chat_template.jinja ")


def test_chats_are_rendered_as_transformers_renders_them() -> None:
    bounded, plain = reader(BASE), AutoTokenizer.from_pretrained(BASE)
    chats = [CHAT, [{"role": "system", "content": "Be brief. \U0001f600"}, *CHAT], CHAT * 50]
    choices: list[dict[str, Any]] = [
        {"add_generation_prompt": True, "enable_thinking": False}, {"continue_final_message": True}, {},
    ]  # fmt: skip
    for options in choices:
        for chat in chats:
            assert bounded.apply_chat_template(chat, tokenize=False, **options) == plain.apply_chat_template(
                chat, tokenize=False, **options
            )


LOOPS = {
    "nested": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    # A first exception is dropped there: a constant that cannot be computed is left to rendering.
    "in a constant": "{{ ('x ' * (2 * 10 ** 6)) | urlize | length }}",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_template_that_never_ends_is_stopped(loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1)
    assert refused_chat(with_template(tmp_path / "m", LOOPS[loop])) == (
        "takes over 1 s of computing to render a chat; correct the template, or choose another model"
    )
    assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_one_that_no_exception_reaches_ends_the_process(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "m", "{{ ([[0]] * 3000000) | sum(start=[]) | length }}")
    code = (
        "import sys; from pathlib import Path; from mergetime.modalities.causal_lm import reading, rendering;"
        "rendering.SECONDS = 1; tokenizer = reading.reader(Path(sys.argv[1]));"
        "tokenizer.apply_chat_template([{'role': 'user', 'content': ''}], tokenize=False)"
    )
    done = run(sys.executable, "-c", code, folder)
    assert done.returncode == -signal.SIGVTALRM
    assert "rendering.py" in done.stderr


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_limit_is_one_of_each_chat_and_of_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    tokenizer = reader(with_template(tmp_path / "m", "{% for i in range(99999) %}{% endfor %}" * 10 + "x"))
    before = time.process_time()
    while time.process_time() - before < 1.5:
        assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "x"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'x' * 10 ** 11 }}", "takes over 1 GiB of memory to render a chat; correct"),
        (
            "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "takes over 1 GiB of memory to render a chat; correct",
        ),
        ("{{ 'x' * 10 ** 7 }}", "makes 10000000 characters of a chat of 61; correct"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "renders no chat (OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "renders no chat (RecursionError: "),
        ("{{ raise_exception('a' * 10 ** 6) }}", f"renders no chat (TemplateError: {'a' * 285}); correct"),
        ("{% if %}", "renders no chat (TemplateSyntaxError: Expected an expression"),
        ("{{ messages[0]['x'].y }}", "renders no chat (UndefinedError: "),
    ],
)
def test_a_template_that_grows_or_fails_is_refused(template: str, said: str, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert refused_chat(with_template(tmp_path / "m", template)).startswith(said)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_harness_may_try_again_where_a_template_fails_and_not_at_a_limit(tmp_path: Path) -> None:
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer = reader(with_template(tmp_path / "refuses", refusal + "{{ messages[0]['content'] }}"))
    with pytest.raises(TemplateError, match="no system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, *CHAT], tokenize=False)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == CHAT[0]["content"]
    with pytest.raises(UserError) as caught:
        reader(with_template(tmp_path / "grows", "{{ 'x' * 10 ** 7 }}")).apply_chat_template(CHAT, tokenize=False)
    assert not isinstance(caught.value, TemplateError)


def test_the_file_is_named_that_the_template_is_in(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", "chat_template.jinja", "tokenizer_config.json")
    config = json.loads((BASE / "tokenizer_config.json").read_text()) | {"chat_template": "{{ 'x' * 10 ** 7 }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert refused_chat(folder).startswith(f"model {folder}: tokenizer_config.json makes 10000000")


def test_rendering_alone_is_offered() -> None:
    with pytest.raises(ValueError, match="a chat is rendered first"):
        reader(BASE).apply_chat_template(CHAT, tokenize=True)


def test_a_script_ends_in_the_same_line(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "m", "{{ 'x' * 10 ** 7 }}")
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": "7"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    (folder / "fetched.json").write_text(json.dumps({"facts": {"weights_sha256": "0" * 64}}))
    done = run(
        sys.executable, ROOT / "scripts/measure_expert.py", "--kind", "gram", "--base", folder, "--expert",
        ROOT / "config/demo_adapter", "--data", tmp_path / "d.parquet", "--out", tmp_path / "out",
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        1,
        [
            f"error: model {folder}: chat_template.jinja makes 10000000 characters of a chat of 61; correct the "
            "template, or choose another model"
        ],
    )


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_cannot_be_loaded_is_named(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", name)
    (folder / name).write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(UserError, match=f"^model {folder}: its tokenizer cannot be loaded"):
        reader(folder)


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt", "config.json"]
)
def test_files_that_are_too_large_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", name)
    with (folder / name).open("w") as file:
        file.truncate(10**11)
    with pytest.raises(UserError, match=f"^model {folder}: {name} has {10**11} bytes; such files have at most"):
        reader(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_so_they_are_where_a_merge_compares_them(name: str, tmp_path: Path) -> None:
    folder = copied(tmp_path / "m", name)
    with (folder / name).open("w") as file:
        file.truncate(10**11)
    with pytest.raises(UserError, match=f"{name} has {10**11} bytes"):
        tokenizer_differs(folder, BASE)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "x_config.json", "model.safetensors.index.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "m", name)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert folder / name not in companions(folder)
    assert model_weights(folder) == sorted(folder.glob("*.safetensors"))


def refused_config(folder: Path) -> str:
    """What is said of a config, in one line, without taking memory or long."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_base(folder, dtype=torch.float32, four_bit=False)
    assert time.process_time() - started < 20
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"model {folder}: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "config.json: num_hidden_layers is 1000000000, but the weights are "),
        ({"hidden_size": -5}, "config.json: hidden_size is -5; no size is negative"),
        ({"vocab_size": 10**12}, "config.json makes model.embed_tokens.weight 1000000000000x128 (vocab_size 1000000000000), in"),
        ({"intermediate_size": 10**12}, "config.json makes model.layers.0.mlp.gate_proj.weight 1000000000000x128 (interm"),
        ({"hidden_size": 10**30}, "no model can be made of config.json ("),
        ({"head_dim": 10**10}, "config.json makes model.layers."),
        ({"hidden_size": "wide"}, "no model can be made of config.json ("),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_by_key(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert refused_config(with_config(tmp_path / "m", **changes)).startswith(said)


LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 16,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 32,
}  # fmt: skip


def with_weights(folder: Path, config: dict[str, Any], names: list[str]) -> Path:
    """A model of tiny tensors, whatever its config says."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(2) for name in names}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_is_far_larger_than_its_weights_is_refused_by_its_sizes(tmp_path: Path) -> None:
    folder = with_weights(tmp_path / "m", LLAMA | {"vocab_size": 10**9}, ["other"])
    assert refused_config(folder).startswith(
        "config.json describes a model of 32000001848 numbers (num_hidden_layers 1, vocab_size 1000000000, hidden_size 16"
    )


def test_so_are_buffers(tmp_path: Path) -> None:
    config = {"model_type": "gptj", "n_positions": 10**9, "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 32}
    folder = with_weights(tmp_path / "m", config | {"rotary_dim": 2}, ["other"])
    assert "n_positions 1000000000" in refused_config(folder)


def test_laying_out_a_model_takes_a_limited_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_BUILD_S", 1)
    folder = with_weights(tmp_path / "m", LLAMA | {"num_hidden_layers": 20_000}, [f"t{n}" for n in range(20_000)])
    assert refused_config(folder).startswith(
        "laying out what config.json describes takes over 1 s (num_hidden_layers 20000, vocab_size 32"
    )
    assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    # A signal in the midst of torch's own switches would leave one of them as it was.
    assert torch.is_grad_enabled()
    assert not torch.empty(1).is_meta


def test_weights_that_lack_a_tensor_are_not_made_up(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path / "m")
    load_base(tmp_path / "m", dtype=torch.float32, four_bit=False)
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"num_hidden_layers": 2}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert refused_config(tmp_path / "m").startswith("the weights lack model.layers.1.input_layernorm.weight, which")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "config.json is no JSON ("),
        (b" " * 100_000_001, "config.json has 100000001 bytes; such files have at most 100000000"),
    ],
)
def test_a_config_that_is_nested_too_deeply_or_too_large_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    folder = with_config(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    assert refused_config(folder).startswith(said)
