"""What an adapter_config.json of PEFT says: checked, and asked module by module."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import regex

from mergetime.artifacts.names import ADAPTER_CONFIG, UNNAMED
from mergetime.core.errors import UserError

_PATTERNS_S = 5
"""Seconds that an adapter's patterns may take on the names of its modules; milliseconds are usual."""
_FP32_MAX = 3.4e38
# With any of these an adapter is other than LoRA or DoRA on layers and parameters.
_UNSUPPORTED = (
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# What says nothing of the update, or is read below. All else that is set may change it.
_KNOWN = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights", "peft_type"),
    *("fan_in_fan_out", "use_dora", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("lora_dropout", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "ensure_weight_tying"),
    *("unsloth_fixed", "unsloth_version"),
}
# These initialisations change the base's weights: B A alone is not the task vector.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_config(owner: str, config: Mapping[str, Any]) -> None:
    """Refuse what makes an adapter other than LoRA that is known here.

    Raises:
        UserError: naming the setting; ``owner`` begins the message.
    """
    if config.get("peft_type") != "LORA":
        raise UserError(f"{owner}: peft_type is {config.get('peft_type')}; only LORA adapters are merged")
    for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        if not isinstance(config.get(key), int | float):
            raise UserError(f"{owner}: {ADAPTER_CONFIG} has no number {key}")
        values = config.get(patterns) or {}
        if not isinstance(values, dict):
            raise UserError(f"{owner}: {patterns} of {ADAPTER_CONFIG} is not an object of patterns and numbers")
        for name, value in [(key, config[key]), *((f"{patterns} {name}", values[name]) for name in values)]:
            if not _is_positive(value, whole=key == "r"):
                kind = "whole number" if key == "r" else "number"
                raise UserError(f"{owner}: {name} is {value} in {ADAPTER_CONFIG}; it must be a positive {kind}")
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        raise UserError(f"{owner}: bias is {config['bias']}, where PEFT knows none, all and lora_only")
    for key in ("target_parameters", "modules_to_save"):
        names = config.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise UserError(f"{owner}: {key} of {ADAPTER_CONFIG} is not a list of names")
    tokens = config.get("trainable_token_indices") or []
    for places in tokens.values() if isinstance(tokens, dict) else [tokens]:
        if not isinstance(places, list) or not all(type(place) is int and place >= 0 for place in places):
            raise UserError(f"{owner}: trainable_token_indices of {ADAPTER_CONFIG} are not lists of numbers of tokens")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise UserError(f"{owner}: {key} is {config[key]}; only LoRA and DoRA on layers and parameters are merged")
    for key in sorted(set(config) - _KNOWN):
        if config[key]:
            raise UserError(
                f"{owner}: {ADAPTER_CONFIG} sets {key}, which nothing is known of here; if it does not change what "
                "the adapter adds to the weights, remove the key"
            )
    initial = str(config.get("init_lora_weights")).lower()
    if initial.startswith(_BASE_CHANGING):
        raise UserError(f"{owner}: init_lora_weights is {initial}, which changes the base; convert it to plain LoRA")


def _is_positive(value: Any, *, whole: bool) -> bool:
    """Whether a value of a config is a number above 0 that fp32 holds; ``True`` is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= _FP32_MAX and (not whole or value == int(value))


def by_pattern(owner: str, patterns: Mapping[str, Any] | None, modules: Iterable[str], default: Any) -> dict[str, Any]:
    """The value for each module, its name matched against the patterns as PEFT does: in order, at a dot, to the end.

    Raises:
        UserError: for a pattern that is not a regular expression, or patterns that take seconds, as ``(.|..|...)+Z``.
    """
    end = time.monotonic() + _PATTERNS_S
    values = dict.fromkeys(modules, default)
    for module in values:
        for pattern, value in (patterns or {}).items():
            try:
                if (left := end - time.monotonic()) <= 0:
                    raise TimeoutError
                # The library of the standard cannot be stopped.
                if regex.match(rf"(.*\.)?({pattern})$", module, timeout=left):
                    values[module] = value
                    break
            except regex.error as error:
                raise UserError(
                    f"{owner}: the pattern {pattern!r} of {ADAPTER_CONFIG} is not a regular expression ({error})"
                ) from error
            except TimeoutError as error:
                raise UserError(
                    f"{owner}: the patterns of {ADAPTER_CONFIG} take over {_PATTERNS_S} s, {pattern!r} on {module} "
                    "among them; write them plainly"
                ) from error
    return values


def check_named_base(adapter: str, named: object, base: str, declared: str | None) -> None:
    """Refuse an adapter that calls its base otherwise than the study does, and than the study declares.

    Hub ids are the same in any case.

    Raises:
        UserError: with what to declare.
    """
    called = str(named or UNNAMED)
    if called.lower() in {base.lower(), (declared or base).lower()}:
        return
    if declared:
        raise UserError(f"adapter {adapter}: trained on base {called}, and not on {declared}; correct trained_on")
    raise UserError(
        f"adapter {adapter}: trained on base {called}, this study's is {base}; choose an adapter of this base, or, "
        f"where the two are the same, say trained_on: {called}"
    )
