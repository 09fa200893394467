"""A hub for rehearsing a study at full size: its repositories under their real ids, at the commits of its config.

Schemas and file layouts are those of the real repositories; the rows are the demo's, a few dozen each, and the models
are tiny ones of the real architectures: for Qwen3.5 a multimodal checkpoint in shards, around the demo's own base, so
that answers end and benchmarks are not all zero.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
)

from mergetime.config.evaluation import Benchmark
from mergetime.config.sources import Domain
from mergetime.config.study import Study
from mergetime.demo import arithmetic, functions, instructions, locales, requests

Row = dict[str, Any]
ROWS = 96
"""Rows of a training set; some are dropped when it is prepared, as duplicates or unsafe."""
ITEMS = 12
"""Items of a benchmark's split."""
_SHARD = "400KB"
_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 2,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
}
_POSITIONS = 8192


def make(study: Study, base: Path, folder: Path, *, seed: int = 0) -> dict[str, str]:
    """Fill ``folder`` with every repository that a study fetches, and return their commits.

    Args:
        study: the config; its commits become those of the repositories.
        base: folder of the demo's base.
        folder: the hub; what is there is replaced.
        seed: seed of rows and weights.

    Raises:
        ValueError: for a repository whose rows this module does not know how to make.
    """
    shutil.rmtree(folder, ignore_errors=True)
    commits = {}
    for place, (model, commit) in enumerate(_once((b.model, b.revision) for b in study.bases.values())):
        _write_base(base, folder / "models" / model, growth=place, seed=seed)
        commits[model] = _pin(folder / "models" / model, commit)
    for model, commit in _once((judge.model, judge.revision) for judge in study.judges.values()):
        _write_judge(base, folder / "models" / model, seed=seed)
        commits[model] = _pin(folder / "models" / model, commit)
    sources: list[Domain | Benchmark] = [*study.domains.values(), *study.benchmarks.values()]
    for name, commit in _once((source.dataset, source.revision) for source in sources):
        if name not in _DATASETS:
            raise ValueError(f"no rows can be made up for data set {name}; add it to {Path(__file__).name}")
        target = folder / "datasets" / name
        target.mkdir(parents=True)
        _DATASETS[name](target, random.Random(f"{name}:{seed}"))
        commits[name] = _pin(target, commit)
    return commits


def _once(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys(pairs))


def _pin(repository: Path, commit: str) -> str:
    (repository / ".commit").write_text(commit)
    return commit


def _write_base(base: Path, target: Path, *, growth: int, seed: int) -> None:
    """A multimodal Qwen3.5 around the demo's base, in shards and bfloat16; 1 has a wider MLP, 2 more layers."""
    text = Qwen3_5ForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = text.config.to_dict() | {"max_position_embeddings": _POSITIONS, "dtype": "bfloat16"}
    if growth == 1:
        config["intermediate_size"] = 448
    elif growth > 1:
        config["num_hidden_layers"] *= growth
        config["layer_types"] = config["layer_types"] * growth
    vision = _VISION | {"out_hidden_size": config["hidden_size"]}
    torch.manual_seed(seed)
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=config, vision_config=vision, tie_word_embeddings=True)
    )
    _grow(model.model.language_model, text.model)
    # What the published checkpoints hold beside the model's own tensors: a head that predicts several tokens.
    hidden = config["hidden_size"]
    extra = {"mtp.fc.weight": torch.randn(hidden, 2 * hidden) * 0.02, "mtp.norm.weight": torch.zeros(hidden)}
    state = {name: tensor.to(torch.bfloat16) for name, tensor in (model.state_dict() | extra).items()}
    del state["lm_head.weight"]
    model.save_pretrained(target, state_dict=state, max_shard_size=_SHARD)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


@torch.no_grad()
def _grow(model: PreTrainedModel, small: PreTrainedModel) -> None:
    """Put a small model's weights into a larger one, whose other weights hardly change what it computes."""
    smaller = small.state_dict()
    for name, parameter in model.named_parameters():
        source = smaller.get(name)
        if source is None or source.shape != parameter.shape:
            writes_to_the_stream = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
            parameter.mul_(1e-3 if writes_to_the_stream else 1.0)
        if source is not None:
            parameter[tuple(slice(length) for length in source.shape)] = source


def _write_judge(base: Path, target: Path, *, seed: int) -> None:
    """A Mistral of random weights, in shards: its answers cannot be read, which is a case of its own."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_POSITIONS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    judge = MistralForCausalLM(config)
    torch.nn.Module.to(judge, torch.bfloat16)
    judge.save_pretrained(target, max_shard_size=_SHARD)
    tokenizer.save_pretrained(target)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [dict(row) for row in rows]


def _parquet(folder: Path, split: str, rows: list[Row], *, files: int = 1) -> None:
    """A split as the hub's own conversion lays it out: ``split-00000-of-00002.parquet``."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(files):
        table = pa.Table.from_pylist(rows[place::files])
        pq.write_table(table, folder / f"{split}-{place:05d}-of-{files:05d}.parquet")


def _lines(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _card(target: Path, configs: dict[str, dict[str, str]], **options: str) -> None:
    """The head of a data card, which says what files make which split of which configuration."""
    described = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in files.items()],
            **options,
        }
        for name, files in configs.items()
    ]
    (target / "README.md").write_text(f"---\nconfigs: {json.dumps(described)}\n---\n", encoding="utf-8")


def _dart_math(target: Path, rng: random.Random) -> None:
    _parquet(target / "data", "train", arithmetic.training_rows(rng, ROWS), files=2)
    _card(target, {"default": {"train": "data/train-*"}})


def _magicoder(target: Path, rng: random.Random) -> None:
    _lines(target / "data-oss_instruct-decontaminated.jsonl", functions.training_rows(rng, ROWS))


def _tulu(target: Path, rng: random.Random) -> None:
    _parquet(target / "data", "train", instructions.training_rows(rng, ROWS))
    _card(target, {"default": {"train": "data/train-*"}})


def _aya(target: Path, rng: random.Random) -> None:
    _parquet(target / "data", "train", locales.training_rows(rng, ROWS))
    _parquet(target / "data", "test", locales.training_rows(rng, ITEMS))
    _parquet(target / "demographics", "train", [{"index": 0, "languages": "['de']"}])
    splits = {"train": "data/train-*", "test": "data/test-*"}
    _card(target, {"default": splits, "demographics": {"train": "demographics/train-*"}})


def _beavertails(target: Path, rng: random.Random) -> None:
    rows = _rows(requests.training_rows(rng, 2 * ROWS))
    unsafe = [
        row | {"response": "Sure, here is how.", "is_safe": False} for row in rows if any(row["category"].values())
    ]
    splits = {"330k_train": rows + unsafe, "330k_test": rows[:4], "30k_train": rows[:8], "30k_test": rows[:4]}
    for split, part in splits.items():
        size, kind = split.split("_")
        _lines(target / f"round0/{size}/{kind}.jsonl", part)
    _card(target, {"default": {s: "round0/{}/{}.jsonl".format(*s.split("_")) for s in splits}})


def _gsm8k(target: Path, _: random.Random) -> None:
    for config in ("main", "socratic"):
        _parquet(target / config, "train", arithmetic.benchmark("validation", ITEMS))
        _parquet(target / config, "test", arithmetic.benchmark("test", ITEMS))
    files = {c: {s: f"{c}/{s}-*" for s in ("train", "test")} for c in ("main", "socratic")}
    _card(target, files)


def _humaneval(target: Path, _: random.Random) -> None:
    _parquet(target / "openai_humaneval", "test", functions.benchmark("test", ITEMS))
    _card(target, {"openai_humaneval": {"test": "openai_humaneval/test-*"}})


def _ifeval(target: Path, _: random.Random) -> None:
    _lines(target / "ifeval_input_data.jsonl", instructions.benchmark("test", ITEMS))


def _m_arc(target: Path, _: random.Random) -> None:
    languages = ("de", "es", "fr", "ru")
    for language in languages:
        for split in ("train", "validation", "test"):
            documents = _rows(locales.benchmark("test" if split == "test" else "validation", ITEMS))
            rows = [
                {
                    "id": str(place),
                    "instruction": document["question"],
                    **{f"option_{x}": text for x, text in zip("abcd", document["choices"]["text"], strict=True)},
                    "option_e": "",
                    "answer": document["answerKey"],
                }
                for place, document in enumerate(documents)
            ]
            _parquet(target / language, split, rows)
    splits = ("train", "validation", "test")
    _card(target, {code: {s: f"{code}/{s}-*" for s in splits} for code in languages})


def _harmbench(target: Path, _: random.Random) -> None:
    documents = [row for row in requests.benchmark("test", 4 * ITEMS) if row["harmful"]][:ITEMS]
    rows = [{"prompt": row["behavior"], "category": "illegal"} for row in documents]
    for config in ("standard", "contextual", "copyright"):
        _parquet(target / config, "train", rows)
    _card(target, {c: {"train": f"{c}/train-*"} for c in ("standard", "contextual", "copyright")})


def _mmlu(target: Path, _: random.Random) -> None:
    def rows(split: str) -> list[Row]:
        documents = _rows(locales.benchmark("test" if split == "test" else "validation", 2 * ITEMS))
        subjects = ("college_physics", "anatomy", "moral_disputes")
        return [
            {
                "question": document["question"],
                "subject": subjects[place % len(subjects)],
                "choices": document["choices"]["text"],
                "answer": "ABCD".index(document["answerKey"]),
            }
            for place, document in enumerate(documents)
        ]

    for split in ("test", "validation", "dev"):
        _parquet(target / "all", split, rows(split))
    _card(target, {"all": {split: f"all/{split}-*" for split in ("test", "validation", "dev")}})


def _conala(target: Path, rng: random.Random) -> None:
    def rows(count: int) -> list[Row]:
        return [
            {
                "question_id": place,
                "intent": row["problem"],
                "rewritten_intent": row["problem"] if place % 2 else None,
                "snippet": row["seed"],
            }
            for place, row in enumerate(functions.training_rows(rng, count))
        ]

    _parquet(target / "curated", "train", rows(ITEMS))
    _parquet(target / "curated", "test", rows(ITEMS))
    _card(target, {"curated": {split: f"curated/{split}-*" for split in ("train", "test")}})


def _ifeval_like(target: Path, _: random.Random) -> None:
    rows = [
        row | {"kwargs": json.dumps(row["kwargs"]), "response": "", "prompt_level_strict_acc": True}
        for row in instructions.benchmark("validation", ITEMS)
    ]
    _parquet(target / "filtered", "train", rows)
    _card(target, {"filtered": {"train": "filtered/train-*"}})


def _lambada(target: Path, rng: random.Random) -> None:
    languages = ("de", "en", "es", "fr", "it")
    for language in languages:
        texts = [f"{row['inputs']} {row['targets']}" for row in locales.training_rows(rng, ITEMS)]
        _lines(target / "data" / f"lambada_test_{language}.jsonl", [{"text": text} for text in texts])
    _card(target, {code: {"test": f"data/lambada_test_{code}.jsonl"} for code in languages})


def _wildjailbreak(target: Path, _: random.Random) -> None:
    rows = [
        (row["behavior"], "adversarial_harmful" if row["harmful"] else "adversarial_benign")
        for row in requests.benchmark("validation", 2 * ITEMS)
    ]
    text = "".join(f"{adversarial}\t{1}\t{kind}\n" for adversarial, kind in rows)
    (target / "eval").mkdir()
    (target / "eval" / "eval.tsv").write_text(f"adversarial\tlabel\tdata_type\n{text}", encoding="utf-8")
    _card(target, {"eval": {"train": "eval/eval.tsv"}}, sep="\t")


_DATASETS: dict[str, Callable[[Path, random.Random], None]] = {
    "hkust-nlp/dart-math-hard": _dart_math,
    "ise-uiuc/Magicoder-OSS-Instruct-75K": _magicoder,
    "allenai/tulu-3-sft-personas-instruction-following": _tulu,
    "CohereLabs/aya_dataset": _aya,
    "PKU-Alignment/BeaverTails": _beavertails,
    "openai/gsm8k": _gsm8k,
    "openai/openai_humaneval": _humaneval,
    "google/IFEval": _ifeval,
    "alexandrainst/m_arc": _m_arc,
    "walledai/HarmBench": _harmbench,
    "cais/mmlu": _mmlu,
    "neulab/conala": _conala,
    "argilla/ifeval-like-data": _ifeval_like,
    "EleutherAI/lambada_openai": _lambada,
    "allenai/wildjailbreak": _wildjailbreak,
}
