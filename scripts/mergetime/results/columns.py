"""The columns of the tidy files that tables and figures are made from."""

import pyarrow as pa

from mergetime.core.tables import Column

_TEXT, _WHOLE, _REAL, _FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()

SUBJECT = {
    "study": Column(_TEXT, False, "the study's name in its config"),
    "base": Column(_TEXT, False, "the base's id in the config"),
    "base_revision": Column(_TEXT, False, "commit hash of the base on the hub"),
    "subject_kind": Column(_TEXT, False, "base, expert or merged"),
    "subject": Column(_TEXT, False, "the subject's path below experts/ or merged/; the base's id for a base"),
    "expert": Column(_TEXT, True, "experts: the domain it was trained on, or the name it was imported under"),
    "pool": Column(_TEXT, True, "merged: the pool's id"),
    "method": Column(_TEXT, True, "merged: the method's id in the config"),
    "space": Column(_TEXT, True, "merged: adapter (LoRA factors) or delta (weight updates)"),
    "duration": Column(_TEXT, True, "experts, and pools at one duration: its id, such as 0.25x or step_512"),
    "multiple": Column(_REAL, True, "the duration as a multiple of T*; null for durations that are none"),
    "seed": Column(_WHOLE, True, "the seed of training and merging; null for a base"),
    "t_star_at_boundary": Column(_FLAG, False, "a T* behind this subject is no interior minimum"),
    "chosen": Column(_TEXT, True, "merged: what validation chose, as JSON ({lambda: 0.5}, {members: [...]})"),
    "algorithm": Column(_TEXT, True, "merged: the merge algorithm's id in the registry, whatever the method's id"),
    "pool_family": Column(_TEXT, True, "merged: the key below pools in the config that the pool is of"),
    "pool_size": Column(_WHOLE, True, "merged: number of experts in the pool"),
    "draw": Column(_WHOLE, True, "merged: the number of the random subset, from 0 for each size; null: not drawn"),
    "members": Column(_TEXT, True, "merged: names of the pool's experts, as a JSON list"),
    "recipe": Column(_TEXT, True, "how the experts were trained; null for a base, imported experts, and of several"),
    "axis": Column(_TEXT, True, "merged: the hyper-parameter that is swept; null for the method as configured"),
    "axis_value": Column(_REAL, True, "merged: its value in this sweep"),
    "base_family": Column(_TEXT, True, "the family of the base, as the config gives it"),
    "base_parameters": Column(_WHOLE, True, "parameters of the base, as the config gives them"),
    "base_tuning": Column(_TEXT, True, "pretrained or instruct, as the config gives it"),
}
RESULTS = SUBJECT | {
    "split": Column(_TEXT, False, "validation, test or another group: the name of the evaluation's files"),
    "group": Column(_TEXT, False, "the group of the suite: validation chooses, any other reports"),
    "domain": Column(_TEXT, False, "the domain that the benchmark measures"),
    "benchmark": Column(_TEXT, False, "the benchmark's id in the config"),
    "metric": Column(_TEXT, False, "the metric's name in lm-eval, with its filter; or with its judge"),
    "primary": Column(_FLAG, False, "the metric that tables report for this benchmark"),
    "value": Column(_REAL, False, "mean score over items (or tasks), from 0 to 1; minus the loss for validation_loss"),
    "stderr": Column(_REAL, False, "standard error of the mean over items; items of one stem are one draw"),
    "items": Column(_WHOLE, False, "number of items scored"),
    "task_hash": Column(_TEXT, False, "lm-eval's hash over the task's samples"),
    "harness_version": Column(_TEXT, False, "version of lm-eval"),
}
SAMPLES = SUBJECT | {
    "split": RESULTS["split"],
    "group": RESULTS["group"],
    "domain": RESULTS["domain"],
    "benchmark": RESULTS["benchmark"],
    "task": Column(_TEXT, False, "lm-eval's name of the task, of which a benchmark may have several"),
    "metric": RESULTS["metric"],
    "primary": RESULTS["primary"],
    "item": Column(_TEXT, False, "lm-eval's hash of the document: the same item has the same hash in every subject"),
    "stem": Column(_TEXT, False, "the same for translations of one document, which errors take as one draw; else item"),
    "score": Column(_REAL, False, "the item's score: the mean over a task's items is its value"),
}
CURVES = {
    "study": SUBJECT["study"],
    "base": SUBJECT["base"],
    "domain": Column(_TEXT, False, "the domain that the expert trains on"),
    "seed": Column(_WHOLE, False, "the seed of training"),
    "step": Column(_WHOLE, False, "optimizer steps done"),
    "train_loss": Column(_REAL, True, "mean training loss since the row before, nats per response token"),
    "validation_loss": Column(_REAL, True, "loss on the domain's validation split, nats per response token"),
    "validation_accuracy": Column(_REAL, True, "share of its response tokens whose most likely token is right"),
    "gradient_norm": Column(_REAL, True, "norm of the gradient before clipping, at the logged step"),
    "learning_rate": Column(_REAL, True, "learning rate of the logged step; null before the first"),
    "tokens": Column(_WHOLE, False, "tokens trained on so far, without padding"),
    "tokens_per_second": Column(_REAL, True, "the same since the row before, by seconds of training; not reproducible"),
    "gpu_memory_mb": Column(_REAL, True, "peak memory of tensors on the GPU so far, MiB; null without a GPU"),
    "energy_j": Column(_REAL, True, "energy that the GPU drew since the row before, joules; null where not measured"),
    "t_star": Column(_WHOLE, False, "T*: the step of the lowest validation loss, in optimizer steps"),
    "t_star_at_boundary": Column(_FLAG, False, "T* is no interior minimum of this curve"),
    "last_step": Column(_WHOLE, False, "the step at which training stopped"),
    "recipe": Column(_TEXT, False, "how the expert is trained: the recipe's name in the config"),
}
