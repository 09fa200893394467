"""The demo's base: a Qwen3.5 of under a million parameters with its tokenizer, pre-trained on a general mixture."""

import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from mergetime.demo import arithmetic, functions, instructions, locales, requests

SHARES = {arithmetic: 0.27, functions: 0.17, instructions: 0.21, locales: 0.25, requests: 0.10}
"""The general mixture: the share of each domain's ``general`` pairs."""

VOCABULARY = 1152
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# Qwen's own pre-tokenizer: digits one by one, words with their leading space.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The parts of Qwen3.5's template that text-only chats use, with its switch for thinking.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- else %}{{- '<think>\n' }}{%- endif %}"
    "{%- endif %}"
)


def mixture(seed: int, count: int) -> list[tuple[str, str]]:
    """``count`` (prompt, response) pairs of the general mixture."""
    rng = random.Random(seed)
    domains = rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)
    return [domain.general(rng) for domain in domains]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of :data:`VOCABULARY` tokens with Qwen's pre-tokenizer and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3_5ForCausalLM:
    """An untrained model: three linear-attention layers and one full-attention layer, tied embeddings."""
    config = Qwen3_5TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3_5ForCausalLM(config)


def pretrain(out: Path, scratch: str, *, seed: int, examples: int, batch_size: int, learning_rate: float) -> None:
    """Pre-train the base on ``examples`` pairs, one pass, and save model and tokenizer to ``out``."""
    set_seed(seed)
    pairs = mixture(seed, examples)
    tokenizer = build_tokenizer([f"user\n{prompt}\nassistant\n\n{response}" for prompt, response in pairs[:40_000]])
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], tokenize=False
        )
        for prompt, response in pairs
    ]
    encoded = tokenizer(chats, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    rows = [{"input_ids": ids, "length": len(ids)} for ids in encoded]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        for position, row in enumerate(batch):
            ids[position, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        return {
            "input_ids": ids,
            "attention_mask": (ids != tokenizer.pad_token_id).long(),
            "labels": ids.masked_fill(ids == tokenizer.pad_token_id, -100),
        }

    arguments = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=100,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )
    model = build_model(tokenizer)
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
