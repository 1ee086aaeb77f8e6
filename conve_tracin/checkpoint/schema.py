"""What the members of a checkpoint must be. A file can hold anything; what passes here can be used without a doubt."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conve_tracin.errors import InputError
from conve_tracin.model.conve import weight_shapes
from conve_tracin.settings import ConvEConfig, TrainingConfig, about, with_flags

WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# A number of float32 values whose bytes still fit into 64 bits.
LARGEST_TENSOR = 2**63 // 4 - 1

TRAINING_APPROACHES = about(with_flags(TrainingConfig)["training_approach"]).choices

Check = Callable[[Any], bool]


def require_known_kinds(content: Mapping[Any, Any], *, source: str | Path) -> None:
    """Raise InputError that names the first member of a checkpoint, of any format, that is no such thing."""
    for name, (is_right, wanted) in MEMBERS.items():
        if name in content and not is_right(content[name]):
            raise InputError(f"{source}: its {name} is not {wanted}; use an undamaged checkpoint")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number_or_infinite(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, float) and math.isinf(value))


def _is_rate(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_mapping(*, of: Check | None = None) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and (of is None or of(member)) for key, member in value.items()
        )

    return check


def _is_optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_training_config(value: Any) -> bool:
    if not _is_mapping(of=_is_json)(value):
        return False
    stored = {each: value[name] for name, each in with_flags(TrainingConfig).items() if name in value}
    return (
        all(isinstance(member, each.type) for each, member in stored.items() if each.type in (bool, str))
        and value.get("training_approach", TrainingConfig.training_approach) in TRAINING_APPROACHES
        and _is_rate(value.get("learning_rate", TrainingConfig.learning_rate))
    )


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, Mapping) or (value and not isinstance(value.get("state"), Mapping)):
        return False
    if not value:
        return True
    groups = value.get("param_groups")
    return (
        all(isinstance(state, Mapping) for state in value["state"].values())
        and isinstance(groups, list)
        and all(
            isinstance(group, Mapping)
            and _is_rate(group.get("lr"))
            and isinstance(group.get("params"), list)
            and all(map(_is_whole, group["params"]))
            for group in groups
        )
    )


def _is_history(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_record, value))


def _is_record(value: Any) -> bool:
    # A loss may be NaN: files of other origins tell how a training went wrong.
    return (
        isinstance(value, Mapping)
        and _is_json(value)
        and _is_whole(value.get("epoch"))
        and isinstance(value.get("loss"), int | float)
        and _is_metrics(value.get("valid", {}))
    )


def _is_metrics(value: Any) -> bool:
    return _is_mapping()(value) and all(
        isinstance(metric, str) if name == "ranked" else _is_number(metric) for name, metric in value.items()
    )


MEMBERS: dict[str, tuple[Check, str]] = {
    "epoch": (_is_whole, "a whole number"),
    "model_state_dict": (_is_mapping(), "a table of named weights"),
    "trained_state_dict": (_is_mapping(), "a table of named weights"),
    "num_averaged": (lambda value: _is_whole(value) and value > 0, "a whole number of at least 1"),
    "model_config": (_is_mapping(), "a table of sizes"),
    "training_config": (_is_training_config, "a table of training settings"),
    "mapping_digest": (_is_mapping(of=lambda digest: isinstance(digest, str)), "a table of digests"),
    "training_triples_digest": (lambda value: isinstance(value, str), "a digest"),
    "learning_rate": (_is_optional(_is_rate), "a number of at least 0"),
    "optimizer_state_dict": (_is_optional(_is_optimizer), "the state of an optimizer"),
    "scheduler_state_dict": (_is_mapping(), "the state of a schedule"),
    "scaler_state_dict": (_is_mapping(), "the state of a gradient scaler"),
    "history": (_is_history, "a list of epochs"),
    "metrics": (_is_metrics, "a table of metrics"),
    "best_mrr": (_is_number_or_infinite, "a number"),
    "evaluations_without_improvement": (_is_whole, "a whole number"),
    "batch_size": (lambda value: _is_whole(value) and value > 0, "a whole number of at least 1"),
    "inverse_triples": (lambda value: isinstance(value, bool), "true or false"),
    "entity_to_id_dict": (_is_optional(_is_mapping(of=_is_whole)), "a mapping of labels to ids"),
    "relation_to_id_dict": (_is_optional(_is_mapping(of=_is_whole)), "a mapping of labels to ids"),
}


def first_difference(stored: Any, example: Any, *, name: str = "") -> str | None:
    """Return the name of the first part of `stored` that is of another kind than in `example`, or None.

    Parts of mappings that either side lacks are passed over: versions of torch differ in them. Lists are compared in
    their lengths, tensors in dtype and shape, texts as they are; numbers are numbers, whole or not, and NaN is none.
    """
    if isinstance(example, Mapping):
        if not isinstance(stored, Mapping):
            return name
        parts = [(f"{name}.{key}", stored[key], example[key]) for key in example if key in stored]
    elif isinstance(example, list | tuple):
        if not isinstance(stored, list | tuple) or len(stored) != len(example):
            return name
        parts = [(f"{name}[{place}]", *pair) for place, pair in enumerate(zip(stored, example, strict=True))]
    else:
        return None if _is_like(stored, example) else name
    found = (first_difference(one, other, name=part) for part, one, other in parts)
    return next((difference for difference in found if difference is not None), None)


def _is_like(stored: Any, example: Any) -> bool:
    if isinstance(example, Tensor):
        return isinstance(stored, Tensor) and (stored.dtype, stored.shape) == (example.dtype, example.shape)
    if isinstance(example, str):
        return stored == example
    if isinstance(example, bool) or not isinstance(example, int | float):
        return type(stored) is type(example)
    return _is_number_or_infinite(stored)


def require_sound_weights(state_dict: Mapping[str, Any], *, source: str | Path) -> None:
    """Raise InputError that names the first weight that is no plain tensor of finite numbers.

    A variance below 0 is refused too: BatchNorm would take its root.
    """
    for name, tensor in state_dict.items():
        if not is_plain_tensor(tensor):
            raise InputError(f"{source}: {name} is no tensor of ordinary numbers; use an undamaged checkpoint")
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise InputError(f"{source}: {name} holds NaN or infinite values; use an earlier checkpoint")
        if str(name).endswith("running_var") and not tensor.is_complex() and (tensor < 0).any():
            raise InputError(f"{source}: {name} holds variances below 0; use an undamaged checkpoint")


def _is_finite(tensor: Tensor) -> bool:
    # A finite sum has finite terms, and is there sooner than a look at each of them.
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def is_plain_tensor(value: Any) -> bool:
    """Whether `value` is a dense tensor with a place in memory for each of its numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
        and (not value.is_floating_point() or value.dtype in WEIGHT_DTYPES)
        # A few bytes can pose as a table of any size, which would be filled when it is copied.
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )


def require_names(state: Mapping[str, Tensor], known: Collection[str], *, optional: str | None = None) -> None:
    """Raise InputError if a state dict lacks a weight of `known` other than `optional`, or has one besides them."""
    missing = [name for name in known if name not in state and name != optional]
    unknown = [name for name in state if name not in known]
    no_tensors = [name for name in known if name in state and not isinstance(state[name], Tensor)]
    if no_tensors:
        raise InputError(f"its {no_tensors[0]} is no tensor; use an undamaged checkpoint")
    if missing or unknown:
        lists = [
            f"{what} {', '.join(map(str, names[:3]))}{' …' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("also has", unknown))
            if names
        ]
        raise InputError(
            f"its weights are not those of a ConvE with batch normalisation: it {' and '.join(lists)}; "
            "use a checkpoint of a ConvE"
        )


def require_shapes(state_dict: Mapping[str, Tensor], config: ConvEConfig) -> None:
    """Raise InputError if a native model's weights have other shapes or kinds of numbers than its sizes ask for.

    Weights that either side lacks are passed over.
    """
    for name, shape in possible_shapes(config).items():
        weight = state_dict.get(name)
        if weight is None:
            continue
        if not is_plain_tensor(weight) or weight.is_floating_point() == name.endswith("num_batches_tracked"):
            raise InputError(f"{name} does not hold the numbers of a ConvE; use an undamaged checkpoint")
        if weight.shape != shape:
            raise InputError(
                f"{name} has the shape {tuple(weight.shape)}, but its model_config asks for {shape}; "
                "use an undamaged checkpoint"
            )


def conve_config(model_config: Mapping[str, Any]) -> ConvEConfig:
    """Take the sizes of a ConvE out of a checkpoint; raise InputError if they are not those of one."""
    try:
        return ConvEConfig(**model_config)
    except TypeError as error:
        raise InputError(f"its model_config is not that of a ConvE ({error}); use an undamaged checkpoint") from error


def possible_shapes(config: ConvEConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a ConvE's state dict; raise InputError if one has more bytes than can be counted."""
    shapes = weight_shapes(config)
    if any(math.prod(shape) > LARGEST_TENSOR for shape in shapes.values()):
        raise InputError("its model_config asks for more than any memory holds; use an undamaged checkpoint")
    return shapes
