"""Checkpoints between the native names and PyKEEN's: weights, sizes, optimizer state. Needs no pykeen.

Checked against pykeen 1.11.1. `convert_checkpoint.py` is the command line of this module.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conve_tracin.checkpoint.native import CONVERTED, NATIVE, PYKEEN_TRAINING_LOOP, detect_format, uses_inverse_triples
from conve_tracin.checkpoint.schema import conve_config, require_names, require_shapes, require_sound_weights
from conve_tracin.data.queries import count_relation_rows
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvEConfig, is_statistic, weight_shapes

logger = logging.getLogger(__name__)

ENTITY_EMBEDDINGS = "entity_representations.0._embeddings.weight"

ENTITY_BIAS = "entity_representations.1._embeddings.weight"

RELATION_EMBEDDINGS = "relation_representations.0._embeddings.weight"


def _module_names(native: str, pykeen: str, *, batch_norm: bool) -> dict[str, str]:
    members = ("weight", "bias")
    if batch_norm:
        members += ("running_mean", "running_var", "num_batches_tracked")
    return {f"{native}.{member}": f"{pykeen}.{member}" for member in members}


# In the order of PyKEEN's state dict, which is also the order of its parameters.
NATIVE_TO_PYKEEN = {
    **_module_names("bn0", "interaction.hr2d.0", batch_norm=True),
    **_module_names("conv1", "interaction.hr2d.2", batch_norm=False),
    **_module_names("bn1", "interaction.hr2d.3", batch_norm=True),
    **_module_names("fc", "interaction.hr1d.0", batch_norm=False),
    **_module_names("bn2", "interaction.hr1d.2", batch_norm=True),
    "entity_embeddings.weight": ENTITY_EMBEDDINGS,
    "entity_bias": ENTITY_BIAS,
    "relation_embeddings.weight": RELATION_EMBEDDINGS,
}

PYKEEN_TO_NATIVE = {pykeen: native for native, pykeen in NATIVE_TO_PYKEEN.items()}


def convert_pytorch_to_pykeen_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a native checkpoint under the names of PyKEEN's ConvE.

    PyKEEN's ConvE always has a bias per entity, of shape (num_entities, 1): the model's own, or zeros. The other
    tensors are the checkpoint's, not copies.

    Raises InputError if a weight is missing or unknown.
    """
    state = checkpoint["model_state_dict"]
    require_names(state, NATIVE_TO_PYKEEN, optional="entity_bias")
    num_entities = len(state["entity_embeddings.weight"])
    bias = state.get("entity_bias")
    if bias is None:
        bias = state["entity_embeddings.weight"].new_zeros(num_entities)
    renamed = {pykeen: state[native] for native, pykeen in NATIVE_TO_PYKEEN.items() if native != "entity_bias"}
    return {**renamed, ENTITY_BIAS: bias.reshape(num_entities, 1)}


def convert_pykeen_to_native_state_dict(
    state_dict: Mapping[str, Tensor], *, has_entity_bias: bool = True
) -> dict[str, Tensor]:
    """Return the weights of PyKEEN's ConvE under the native names; the entity bias has shape (num_entities,).

    A model without an entity bias (`has_entity_bias` false) carries zeros through PyKEEN, and they are left out
    here. Where PyKEEN has trained them since, they are kept.

    Raises InputError if the weights are not those of a ConvE with batch normalisation.
    """
    require_names(state_dict, PYKEEN_TO_NATIVE)
    native = {PYKEEN_TO_NATIVE[name]: tensor for name, tensor in state_dict.items()}
    bias = native.pop("entity_bias").reshape(-1)  # (num_entities,)
    if has_entity_bias or bias.any():
        native["entity_bias"] = bias
    return native


def infer_conve_config(
    state_dict: Mapping[str, Tensor], *, embedding_height: int | None = None, embedding_width: int | None = None
) -> dict[str, int | float | bool]:
    """Read the `model_config` of PyKEEN's ConvE off the shapes of its weights.

    Height and width of the embedding image appear in no shape of their own. They are the factors of the
    embedding size that give the linear layer its number of inputs; where several pairs do, one of the two has to
    be given. Dropout leaves no trace in the weights and gets its defaults: it matters for further training only.

    Raises InputError if the weights are not those of a ConvE, or do not tell height and width.
    """
    require_names(state_dict, PYKEEN_TO_NATIVE)
    try:
        num_entities, embedding_dim = state_dict[ENTITY_EMBEDDINGS].shape
        output_channels, input_channels, kernel_height, kernel_width = state_dict["interaction.hr2d.2.weight"].shape
        _, num_features = state_dict["interaction.hr1d.0.weight"].shape
    except ValueError as error:
        raise InputError("its weights do not have the shapes of a ConvE; use an undamaged checkpoint") from error
    if input_channels != 1:
        raise InputError(f"its convolution has {input_channels} input channels; only ConvE with one is supported")
    sizes = {
        "num_entities": num_entities,
        "num_relations": len(state_dict[RELATION_EMBEDDINGS]),
        "embedding_dim": embedding_dim,
        "output_channels": output_channels,
        "kernel_height": kernel_height,
        "kernel_width": kernel_width,
        "entity_bias": True,
    }
    images = [
        (height, embedding_dim // height)
        for height in range(1, embedding_dim + 1)
        if embedding_dim % height == 0
        and embedding_height in (None, height)
        and embedding_width in (None, embedding_dim // height)
        and _feature_map_size(height, embedding_dim // height, sizes) == num_features
    ]
    if not images:
        raise InputError(
            f"no embedding height × width = {embedding_dim} fits its linear layer of {num_features} inputs; "
            "check --embedding-height and --embedding-width where you gave them"
        )
    if len(images) > 1:
        choices = ", ".join(f"{height} × {width}" for height, width in images)
        raise InputError(f"its weights fit several embedding shapes, height × width {choices}; give --embedding-height")
    height, width = images[0]
    return ConvEConfig(embedding_height=height, embedding_width=width, **sizes).as_dict()


def to_pykeen_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a native checkpoint into one for PyKEEN's ConvE.

    Weights and optimizer state get PyKEEN's names and order; everything else is carried over, so that the way
    back loses nothing. Added: `source_format`, and `inverse_triples` (relation r is row 2r, its inverse 2r + 1).

    Raises InputError if the weights or sizes are not those of a ConvE, or a weight is not finite.
    """
    state = checkpoint["model_state_dict"]
    require_names(state, NATIVE_TO_PYKEEN, optional="entity_bias")
    config = conve_config({**checkpoint["model_config"], "entity_bias": "entity_bias" in state})
    require_shapes(state, config)
    require_sound_weights(state, source="its weights")
    pykeen_state = convert_pytorch_to_pykeen_state_dict(checkpoint)
    content = {
        **checkpoint,
        "model_state_dict": pykeen_state,
        "model_config": config.as_dict(),
        "inverse_triples": uses_inverse_triples(checkpoint),
        "source_format": NATIVE,
    }
    _convert_optimizer(
        content,
        old_names=native_parameter_names(config),
        new_names=pykeen_parameter_names(),
        bias_shape=(config.num_entities, 1),
    )
    return content


def assumed_training(source_format: str | None) -> dict[str, Any]:
    """Return the settings of training that a file of this format is taken to have where it does not say.

    Native checkpoints, converted ones among them, have the documented training; PyKEEN itself trains ConvE with all
    tails of a query at once (LCWA).
    """
    return {"training_approach": "1vsall" if source_format in (NATIVE, CONVERTED) else "kvsall"}


def to_native_checkpoint(
    content: Mapping[str, Any], *, embedding_height: int | None = None, embedding_width: int | None = None
) -> dict[str, Any]:
    """Turn PyKEEN's weights of a ConvE into a native checkpoint.

    `content` is a converted checkpoint, a PyKEEN state dict, or a checkpoint of PyKEEN's training loop. What the
    last one knows besides the weights is kept: epoch, optimizer state, learning rate, mappings (as digests) and
    whether it was trained with inverse triples. The epoch of a bare state dict is unknown and given as 0.

    Height and width are needed where `infer_conve_config` cannot tell them.

    Raises InputError if `content` holds no ConvE of PyKEEN, or a weight is not finite.
    """
    source_format = detect_format(content)
    pykeen_state = pykeen_weights(content)
    require_sound_weights(pykeen_state, source="its weights")
    if source_format == CONVERTED:
        config = dict(content["model_config"])
        native = {key: value for key, value in content.items() if key not in ("source_format", "inverse_triples")}
    else:
        config = infer_conve_config(pykeen_state, embedding_height=embedding_height, embedding_width=embedding_width)
        native = _training_loop_content(content) if source_format == PYKEEN_TRAINING_LOOP else {"epoch": 0}
        # A native file that does not say is taken as trained otherwise.
        if trained_with_inverse_triples(content) is None and config["num_relations"] % 2 == 0:
            logger.warning(
                "it does not tell whether its %d relations are so many or half of them and their inverses; the native "
                "checkpoint takes them as so many. If they have inverses, explain PyKEEN's file itself",
                config["num_relations"],
            )
        native["training_config"] = assumed_training(source_format) | native.get("training_config", {})
    state = convert_pykeen_to_native_state_dict(pykeen_state, has_entity_bias=config.get("entity_bias", True))
    config = conve_config({**config, "entity_bias": "entity_bias" in state})
    require_shapes(state, config)
    native |= {"model_state_dict": state, "model_config": config.as_dict()}
    if native.get("trained_state_dict", state).keys() != state.keys():
        # PyKEEN has trained a bias since, which they lack.
        del native["trained_state_dict"]
        native.pop("num_averaged", None)
    _convert_optimizer(
        native,
        old_names=pykeen_parameter_names(),
        new_names=native_parameter_names(config),
        bias_shape=(config.num_entities,),
    )
    return native


def require_pykeen_shapes(state_dict: Mapping[str, Tensor], config: ConvEConfig) -> None:
    """Raise InputError if PyKEEN's ConvE lacks a table, or a weight has another shape than `config` asks for.

    `config` has an entity bias, as PyKEEN's ConvE has; weights of other names are passed over.
    """
    for name in (ENTITY_EMBEDDINGS, ENTITY_BIAS, RELATION_EMBEDDINGS):
        if name not in state_dict:
            raise InputError(f"its weights lack {name}; use an undamaged checkpoint")
    native = {PYKEEN_TO_NATIVE[name]: tensor for name, tensor in state_dict.items() if name in PYKEEN_TO_NATIVE}
    native["entity_bias"] = native["entity_bias"].reshape(-1)
    require_shapes(native, config)


def pykeen_weights(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the state dict inside of any of PyKEEN's formats.

    Raises InputError if `content` is native, or holds no weights of a PyKEEN model.
    """
    source_format = detect_format(content)
    if source_format == NATIVE:
        raise InputError("is a native checkpoint already; --to pykeen converts it")
    if source_format is None:
        raise InputError("holds no weights of a PyKEEN model; use another file")
    if source_format in (CONVERTED, PYKEEN_TRAINING_LOOP):
        return content["model_state_dict"]
    return content.get("state_dict", content)


def trained_with_inverse_triples(content: Mapping[str, Any]) -> bool | None:
    """Say whether the relation table holds inverse relations, or None if the file does not tell."""
    if "inverse_triples" in content:
        return content["inverse_triples"]
    relations = content.get("relation_to_id_dict")
    if relations is None or detect_format(content) != PYKEEN_TRAINING_LOOP:
        return None
    rows = len(content["model_state_dict"][RELATION_EMBEDDINGS])
    return rows == count_relation_rows(len(relations), inverse_triples=True)


def stored_learning_rate(content: Mapping[str, Any]) -> float | None:
    """Return the learning rate that a checkpoint holds, its own or that of its optimizer, or None."""
    if content.get("learning_rate") is not None:
        return float(content["learning_rate"])
    groups = (content.get("optimizer_state_dict") or {}).get("param_groups")
    return float(groups[0]["lr"]) if groups else None


def stored_mapping_digest(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the mapping digests stored in a checkpoint."""
    if "mapping_digest" in content:
        return dict(content["mapping_digest"])
    mappings = {"entity": content.get("entity_to_id_dict"), "relation": content.get("relation_to_id_dict")}
    return {
        kind: Vocabulary(kind, tuple(sorted(mapping, key=mapping.__getitem__))).digest()
        for kind, mapping in mappings.items()
        if mapping
    }


def native_parameter_names(config: ConvEConfig) -> list[str]:
    """List the native model's parameters in the order in which its optimizer numbers them."""
    return [name for name in weight_shapes(config) if not is_statistic(name)]


def pykeen_parameter_names() -> list[str]:
    """List the parameters of PyKEEN's ConvE, under their native names, in the order of its optimizer."""
    return [name for name in NATIVE_TO_PYKEEN if not is_statistic(name)]


def renumber_optimizer_state(
    optimizer_state: Mapping[str, Any], old_names: Sequence[str], new_names: Sequence[str]
) -> dict[str, Any] | None:
    """Renumber the `state_dict` of a torch optimizer for the same parameters in another order.

    Parameters that only `new_names` has start without a state, as in a new optimizer; the state of those that
    only `old_names` has is dropped. Returns None if the optimizer does not hold exactly the parameters
    `old_names` in a single group: then their numbers tell nothing.
    """
    groups = optimizer_state["param_groups"]
    if len(groups) != 1 or len(groups[0]["params"]) != len(old_names):
        return None
    by_name = {
        name: optimizer_state["state"][number]
        for name, number in zip(old_names, groups[0]["params"], strict=True)
        if number in optimizer_state["state"]
    }
    group = {key: value for key, value in groups[0].items() if key != "param_names"}
    return {
        "state": {number: by_name[name] for number, name in enumerate(new_names) if name in by_name},
        "param_groups": [{**group, "params": list(range(len(new_names)))}],
    }


def _training_loop_content(content: Mapping[str, Any]) -> dict[str, Any]:
    inverse_triples = trained_with_inverse_triples(content)
    native = {
        "epoch": content.get("epoch", 0),
        "optimizer_state_dict": content.get("optimizer_state_dict"),
        "mapping_digest": stored_mapping_digest(content),
        "training_config": None if inverse_triples is None else {"inverse_triples": inverse_triples},
    }
    return {key: value for key, value in native.items() if value is not None}


def _convert_optimizer(
    content: dict[str, Any], *, old_names: Sequence[str], new_names: Sequence[str], bias_shape: tuple[int, ...]
) -> None:
    """Renumber the optimizer state in `content`, or take it out with a statement where that is impossible.

    Both lists hold native names; `bias_shape` is the new shape of the entity bias.
    """
    learning_rate = stored_learning_rate(content)
    if learning_rate is not None:
        content["learning_rate"] = learning_rate
    optimizer_state = content.pop("optimizer_state_dict", None)
    if not optimizer_state:
        return
    renumbered = renumber_optimizer_state(optimizer_state, old_names, new_names)
    if renumbered is None:
        logger.warning("the optimizer state is left out: it is not one group of all parameters of a ConvE")
        return
    if "entity_bias" in new_names:
        _reshape_state(renumbered["state"], new_names.index("entity_bias"), bias_shape)
    content["optimizer_state_dict"] = renumbered


def _reshape_state(state: dict[int, dict[str, Any]], number: int, shape: tuple[int, ...]) -> None:
    # Adam's moments have the shape of their parameter; its step count is a scalar.
    if number in state:
        moments = [value for value in state[number].values() if isinstance(value, Tensor) and value.dim() > 0]
        if any(moment.layout is not torch.strided or moment.numel() != math.prod(shape) for moment in moments):
            raise InputError("its optimizer_state_dict does not fit its entity bias; use an undamaged checkpoint")
        state[number] = {
            key: value.reshape(shape) if isinstance(value, Tensor) and value.dim() > 0 else value
            for key, value in state[number].items()
        }


def _feature_map_size(height: int, width: int, sizes: Mapping[str, int]) -> int | None:
    try:
        return ConvEConfig(embedding_height=height, embedding_width=width, **sizes).feature_map_size
    except InputError:
        return None
