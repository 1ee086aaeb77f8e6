"""PyKEEN's models and files: recognise, read, build, score, convert and verify.

PyKEEN is imported inside the functions that need it, so that importing this module is cheap. Renaming weights needs
no PyKEEN and is in conversion.py.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conve_tracin.checkpoint.conversion import (
    ENTITY_BIAS,
    RELATION_EMBEDDINGS,
    convert_pykeen_to_native_state_dict,
    infer_conve_config,
    pykeen_weights,
    require_pykeen_shapes,
    stored_learning_rate,
    stored_mapping_digest,
    to_native_checkpoint,
    to_pykeen_checkpoint,
    trained_with_inverse_triples,
)
from conve_tracin.checkpoint.native import (
    CONVERTED,
    NATIVE,
    build_model,
    detect_format,
    load_checkpoint,
    read_checkpoint_file,
    save_into,
)
from conve_tracin.checkpoint.schema import conve_config, require_sound_weights
from conve_tracin.data.datasets import first_line, quiet_pykeen
from conve_tracin.data.queries import ROWS_OF_A_RELATION, count_relation_rows, count_relations, with_relation_rows
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.model.conve import ConvE, ConvEConfig

if TYPE_CHECKING:
    import pykeen.models
    from pykeen.models import Model as PyKEENModel  # noqa: F401 - for the annotations of other modules

logger = logging.getLogger(__name__)

PYKEEN_PICKLE = "pykeen-pickle"

# What --verify compares: scores in float64, so that only a wrong weight can make a difference.
NUM_SAMPLE_TRIPLES = 1000

LARGEST_SCORE_DIFFERENCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class LoadedPyKEENModel:
    """A PyKEEN model of any class, ready for analysis: in eval mode, float32, on the CPU.

    Attributes:
        model: parameters that are no part of the model it was trained as (the entity bias of a converted native
            model without one) do not require gradients; leave such parameters out of an analysis.
        inverse_triples: whether the relation table holds inverse relations, too.
        learning_rate: of the optimizer when the file was written, if the file tells.
        source_format: one of the four in native.py, or PYKEEN_PICKLE.
        epoch: finished epochs, if the file tells.
        mapping_digest: {"entity" or "relation": digest} of the mappings that the file tells, or else of those that
            PyKEEN's pipeline saved beside it.
        training_config: how a converted native model was trained; empty for PyKEEN's own files.
        training_triples_digest: of what a converted native model was trained on, if the file tells.
    """

    model: "pykeen.models.Model"
    inverse_triples: bool
    learning_rate: float | None
    source_format: str
    epoch: int | None = None
    mapping_digest: dict[str, str] = field(default_factory=dict)
    training_config: dict[str, Any] = field(default_factory=dict)
    training_triples_digest: str | None = None


def load_pykeen_model(
    path: str | Path,
    *,
    trust_pickle: bool = False,
    num_relations: int | None = None,
    embedding_height: int | None = None,
    embedding_width: int | None = None,
) -> LoadedPyKEENModel:
    """Load a converted checkpoint, a PyKEEN state dict, a training-loop checkpoint or a `trained_model.pkl`.

    The first three hold weights only and are read as a ConvE. A `trained_model.pkl` is a pickled model of any
    class; unpickling runs code, which `trust_pickle` permits.

    `num_relations` is the length of the relation mapping. A state dict alone does not tell whether its relation table
    holds inverses; without `num_relations` it is taken to have none. `embedding_height` and `embedding_width` are
    needed if `infer_conve_config` cannot tell them.

    Raises InputError if the file is none of these, would run code, is damaged, is not pickled but holds another model
    than ConvE, or does not have `num_relations` relations.
    """
    content = read_pykeen_file(path, trust_pickle=trust_pickle)
    try:
        if isinstance(content, nn.Module):
            loaded = _from_pickle(content, num_relations)
        else:
            loaded = _from_weights(content, num_relations, embedding_height, embedding_width)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return replace(loaded, mapping_digest=loaded.mapping_digest or saved_mapping_digest(path))


def read_pykeen_file(path: str | Path, *, trust_pickle: bool = False) -> "dict[str, Any] | pykeen.models.Model":
    """Read any of PyKEEN's files (see `load_pykeen_model`) as it is, onto the CPU.

    With `trust_pickle`, a file that holds more than plain data may run code.

    Raises InputError if the file is absent, damaged or, without `trust_pickle`, would run code.
    """
    try:
        return read_checkpoint_file(path)
    except InputError:
        if not (trust_pickle and Path(path).is_file()):
            raise
    import pykeen.models

    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs whatever the file asks for
        raise InputError(
            f"{path}: cannot be unpickled ({first_line(error)}); use the versions of pykeen and torch that wrote it"
        ) from error
    if not isinstance(content, dict | pykeen.models.Model):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a PyKEEN model; use another file")
    return content


def _from_pickle(model: "pykeen.models.Model", num_relations: int | None) -> LoadedPyKEENModel:
    if num_relations not in (None, model.num_real_relations):
        raise InputError(_wrong_relations(model.num_real_relations, num_relations))
    require_sound_weights(dict(model.named_parameters()), source="its weights")
    return LoadedPyKEENModel(
        model=model.cpu().float().eval(),
        inverse_triples=model.use_inverse_triples,
        learning_rate=None,
        source_format=PYKEEN_PICKLE,
    )


def _from_weights(
    content: Mapping[str, Any],
    num_relations: int | None,
    embedding_height: int | None,
    embedding_width: int | None,
) -> LoadedPyKEENModel:
    state = pykeen_weights(content)
    if "interaction.hr2d.2.weight" not in state:
        raise InputError(
            "holds the weights of another model than ConvE, and only a pickled model tells its class; "
            "use the trained_model.pkl of PyKEEN's pipeline with --trust-pickle"
        )
    require_sound_weights(state, source="its weights")
    source_format = detect_format(content)
    if source_format == CONVERTED:
        stored = content["model_config"]
    else:
        stored = infer_conve_config(state, embedding_height=embedding_height, embedding_width=embedding_width)
    config = conve_config({**stored, "entity_bias": True})
    require_pykeen_shapes(state, config)
    inverse_triples = _has_inverse_rows(
        rows=len(state[RELATION_EMBEDDINGS]),
        num_relations=num_relations,
        stored=trained_with_inverse_triples(content),
    )
    model = build_pykeen_conve(config.as_dict(), inverse_triples=inverse_triples)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"its weights do not fit its model_config ({first_line(error)}); use an undamaged checkpoint"
        ) from error
    # What float32 cannot hold has become infinite.
    require_sound_weights(model.state_dict(), source="its weights")
    bias = state[ENTITY_BIAS]
    if not stored.get("entity_bias", True) and not bias.any():
        model.get_parameter(ENTITY_BIAS).requires_grad_(False)
    return LoadedPyKEENModel(
        model=model.float().eval(),
        inverse_triples=inverse_triples,
        learning_rate=stored_learning_rate(content),
        source_format=source_format,
        epoch=content.get("epoch"),
        mapping_digest=stored_mapping_digest(content),
        training_config=dict(content.get("training_config", {})),
        training_triples_digest=content.get("training_triples_digest"),
    )


def _has_inverse_rows(*, rows: int, num_relations: int | None, stored: bool | None) -> bool:
    if num_relations is None:
        return bool(stored)
    rows_with_inverses = count_relation_rows(num_relations, inverse_triples=True)
    if rows not in (num_relations, rows_with_inverses) or stored not in (None, rows == rows_with_inverses):
        raise InputError(_wrong_relations(rows // ROWS_OF_A_RELATION if stored else rows, num_relations))
    return rows == rows_with_inverses


def _wrong_relations(expected: int, given: int) -> str:
    return f"was trained with {expected} relations, but {given} are given; use the relation mapping of its training"


def build_pykeen_conve(model_config: Mapping[str, Any], *, inverse_triples: bool = False) -> "pykeen.models.ConvE":
    """Build PyKEEN's ConvE of the sizes in a `model_config`, with fresh weights, in training mode.

    `num_relations` of the config counts the rows of the relation table, inverses included. The random state stays as
    it was.

    Raises InputError if the sizes contradict each other.
    """
    config = ConvEConfig(**model_config)
    if inverse_triples and config.num_relations % 2:
        raise InputError(
            f"a relation table of {config.num_relations} rows cannot hold each relation and its inverse; "
            "use an undamaged checkpoint"
        )
    from pykeen.models import ConvE as PyKEENConvE
    from pykeen.triples import KGInfo
    from pykeen.utils import NoRandomSeedNecessary

    counts = KGInfo(
        num_entities=config.num_entities,
        num_relations=count_relations(config.num_relations, inverse_triples=inverse_triples),
        create_inverse_triples=inverse_triples,
    )
    with quiet_pykeen(), torch.random.fork_rng(devices=[]):
        return PyKEENConvE(
            triples_factory=counts,
            embedding_dim=config.embedding_dim,
            embedding_height=config.embedding_height,
            embedding_width=config.embedding_width,
            output_channels=config.output_channels,
            kernel_height=config.kernel_height,
            kernel_width=config.kernel_width,
            input_dropout=config.input_dropout,
            feature_map_dropout=config.feature_map_dropout,
            output_dropout=config.output_dropout,
            random_seed=NoRandomSeedNecessary,
        )


def as_native_conve(model: "pykeen.models.Model") -> ConvE | None:
    """Return a native ConvE, in eval mode, that scores as PyKEEN's does; None if `model` is no such ConvE.

    The weights are copies. An entity bias that does not require gradients (see `LoadedPyKEENModel`) and is zero
    is left out. Relation ids are rows of the relation table, as in `relation_rows`.
    """
    from pykeen.models import ConvE as PyKEENConvE

    if type(model) is not PyKEENConvE:
        return None
    shape = model.interaction.shape_info
    state = model.state_dict()
    try:
        config = infer_conve_config(state, embedding_height=shape.image_height, embedding_width=shape.image_width)
    except InputError:  # without batch normalisation, or of several input channels
        return None
    has_entity_bias = model.get_parameter(ENTITY_BIAS).requires_grad
    native_state = convert_pykeen_to_native_state_dict(state, has_entity_bias=has_entity_bias)
    # In the weights' own precision before it takes them: float32 would round those of float64.
    native = ConvE(**{**config, "entity_bias": "entity_bias" in native_state}).to(state[ENTITY_BIAS])
    native.load_state_dict(native_state, strict=True)
    return native.eval()


def score_pykeen(model: "pykeen.models.Model", triples: Tensor) -> Tensor:
    """Score (head, relation, tail) triples in the ids of the mapping files: shape (B, 3) to (B,).

    `score_hrt` of PyKEEN 1.11.1 takes rows of the relation table. Given an id r of the files, a model trained with
    `create_inverse_triples=True` silently scores relation r // 2, inverted if r is odd. Only `predict_hrt` and the like
    translate ids.

    The result is the raw score (no sigmoid), differentiable, in the model's mode (train, eval).
    """
    return model.score_hrt(relation_rows(model, triples)).squeeze(-1)


def relation_rows(model: "pykeen.models.Model", triples: Tensor) -> Tensor:
    """Return triples (B, 3) with each relation id of the mapping file replaced by its row of the relation table."""
    return with_relation_rows(triples, inverse_triples=model.use_inverse_triples)


def find_training_mappings(path: str | Path) -> tuple[Path, Path] | None:
    """Find the mappings that a PyKEEN pipeline saved: entity_to_id.tsv.gz and relation_to_id.tsv.gz.

    `path` is the directory of `PipelineResult.save_to_directory` or a file in it. Returns None if they are not
    there.
    """
    path = Path(path)
    folder = (path if path.is_dir() else path.parent) / "training_triples"
    entities, relations = folder / "entity_to_id.tsv.gz", folder / "relation_to_id.tsv.gz"
    return (entities, relations) if entities.is_file() and relations.is_file() else None


def saved_mapping_digest(path: str | Path) -> dict[str, str]:
    """Return the digests, by kind, of the mappings that a PyKEEN pipeline saved beside a checkpoint, if it did."""
    mappings = find_training_mappings(path)
    kinds = ("entity", "relation")
    return {kind: read_vocabulary(file, kind).digest() for kind, file in zip(kinds, mappings or (), strict=False)}


class VerificationError(Exception):
    """A converted model does not score as the original does."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert_file` did: sizes, epoch, whether the optimizer state came along, the verified difference."""

    config: ConvEConfig
    epoch: int | None
    keeps_optimizer: bool
    score_difference: float | None


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    verify: bool = False,
    trust_pickle: bool = False,
    embedding_height: int | None = None,
    embedding_width: int | None = None,
) -> Conversion:
    """Convert the checkpoint `source` into the file `target`, to "pykeen" or to "native".

    `verify` compares the scores of both files; `target` is not written if they differ. The other arguments are those of
    `load_pykeen_model`.

    Raises:
        InputError: `source` is no checkpoint to convert, or `target` is `source` or cannot be written.
        VerificationError: the scores differ by more than 1e-5.
    """
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target}: is the checkpoint to convert, which stays as it is; choose another output")
    hints = {"embedding_height": embedding_height, "embedding_width": embedding_width}
    if to == "pykeen":
        content = _converted_to_pykeen(source)
        holds_its_sizes = True
    else:
        original = read_pykeen_file(source, trust_pickle=trust_pickle)
        content = _converted_to_native(original, source, **hints)
        holds_its_sizes = isinstance(original, nn.Module) or detect_format(original) == CONVERTED
    if holds_its_sizes and hints != dict.fromkeys(hints):
        logger.info("--embedding-height and --embedding-width have no effect on %s, which holds its own", source)
    difference = None
    with atomic_write(target) as temporary:
        save_into(temporary, content)
        if verify:
            native_file, pykeen_file = (source, temporary) if to == "pykeen" else (temporary, source)
            pykeen_model = load_pykeen_model(pykeen_file, trust_pickle=trust_pickle, **hints).model
            difference = score_difference(build_model(load_checkpoint(native_file)), pykeen_model)
            # Written so that a difference that is not a number fails too.
            if not difference <= LARGEST_SCORE_DIFFERENCE:
                raise VerificationError(f"{source}: the converted model's scores differ by up to {difference:.3g}")
    return Conversion(
        config=ConvEConfig(**content["model_config"]),
        epoch=content.get("epoch"),
        keeps_optimizer="optimizer_state_dict" in content,
        score_difference=difference,
    )


def _converted_to_pykeen(source: Path) -> dict[str, Any]:
    content = read_checkpoint_file(source)
    if detect_format(content) not in (NATIVE, None):
        raise InputError(f"{source}: holds PyKEEN's weights already; --to native converts it back")
    try:
        return to_pykeen_checkpoint(load_checkpoint(source))
    except InputError as error:
        raise _located(error, source) from error


def _converted_to_native(
    content: "dict[str, Any] | pykeen.models.Model", source: Path, **hints: int | None
) -> dict[str, Any]:
    try:
        if isinstance(content, nn.Module):
            converted = _native_checkpoint_of_pickle(content)
        else:
            converted = to_native_checkpoint(content, **hints)
    except InputError as error:
        raise _located(error, source) from error
    saved = saved_mapping_digest(source)
    return {"mapping_digest": saved, **converted} if saved else converted


def _native_checkpoint_of_pickle(model: "pykeen.models.Model") -> dict[str, Any]:
    native = as_native_conve(model)
    if native is None:
        raise InputError(
            f"holds a {type(model).__name__}; only ConvE with batch normalisation and one input channel converts"
        )
    return {
        "epoch": 0,
        "model_state_dict": native.state_dict(),
        "model_config": native.config.as_dict(),
        "training_config": {"inverse_triples": model.use_inverse_triples},
    }


def score_difference(native: ConvE, pykeen_model: "pykeen.models.ConvE") -> float:
    """Return the largest absolute difference of both models' scores on 1,000 random triples, in float64.

    Relations are drawn from all rows of the relation table, inverses included. Both models are changed to
    float64.
    """
    generator = torch.Generator().manual_seed(0)
    upper = torch.tensor([native.config.num_entities, native.config.num_relations, native.config.num_entities])
    triples = (torch.rand(NUM_SAMPLE_TRIPLES, 3, generator=generator) * upper).long()  # (B, 3)
    with torch.no_grad():
        theirs = pykeen_model.double().score_hrt(triples).squeeze(-1)  # (B,)
        ours = native.double().score(*triples.T)  # (B,)
    return (theirs - ours).abs().max().item()


def _located(error: InputError, source: Path) -> InputError:
    message = str(error)
    return error if message.startswith(str(source)) else InputError(f"{source}: {message}")
