"""Checkpoints: saved whole, loaded strictly and without running code, and recognised by their content."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from conve_tracin.checkpoint.schema import (
    conve_config,
    possible_shapes,
    require_known_kinds,
    require_names,
    require_shapes,
    require_sound_weights,
)
from conve_tracin.checkpoint.unpickle import read_any_protocol
from conve_tracin.data.queries import count_relation_rows
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.files import atomic_write
from conve_tracin.model.conve import ConvE, ConvEConfig

NATIVE = "native"

CONVERTED = "converted"

PYKEEN_STATE_DICT = "pykeen-state-dict"

PYKEEN_TRAINING_LOOP = "pykeen-training-loop"

# In torch.save's format, a zip archive, and in its old one, pickles since protocol 2.
_ZIP_START = b"PK\x03\x04"

_FIRST_BYTES = (_ZIP_START, *(bytes([0x80, protocol]) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)))

# The oldest checkpoints hold these sizes alone; the others have ConvE's defaults there.
_REQUIRED_CONFIG = (
    "num_entities",
    "num_relations",
    "embedding_dim",
    "embedding_height",
    "embedding_width",
    "output_channels",
)


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write `content` with torch.save, whole or not at all."""
    with atomic_write(path) as temporary:
        save_into(temporary, content)


def save_into(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` with torch.save; raises OSError."""
    # An open file, because torch hides the reason (a full disk, say) when it opens the path itself.
    with path.open("wb") as file:
        torch.save(dict(content), file)


def read_checkpoint_file(path: str | Path) -> dict[str, Any]:
    """Read any file that torch.save wrote, onto the CPU, without ever running code from it.

    Raises InputError if the file is absent, cut off, no checkpoint, or would run code when unpickled.
    """
    return _read(Path(path), _load_without_running_code)


def read_checkpoint_outline(path: str | Path) -> dict[str, Any]:
    """Read all but the weights of a checkpoint, which are mapped into memory and unchecked: for many or large files."""
    return _read(Path(path), _map_without_running_code)


def history_as_text(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the record of each epoch as text, in which even NaN equals itself; other origins have no history."""
    return [json.dumps(record, default=str) for record in checkpoint.get("history") or ()]


def _read(path: Path, load: Callable[[Path], Any]) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    if not _begins_like_a_checkpoint(path):
        raise InputError(f"{path}: is no checkpoint; give a file that training wrote")
    try:
        content = load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and plain values, so reading it could run code; "
            "if you trust its origin, `run_tracin.py --trust-pickle` reads PyKEEN's trained_model.pkl"
        ) from error
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise InputError(
            f"{path}: is damaged or no checkpoint ({_first_sentence(error)}); copy it again or use another"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint; use another file")
    require_known_kinds(content, source=path)
    return content


def _begins_like_a_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first_bytes = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    return first_bytes.startswith(_FIRST_BYTES)


def _load_without_running_code(path: Path) -> Any:
    _require_whole_archive(path)
    return _load_any_protocol(path, mmap=False)


def _map_without_running_code(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            # All but the weights; reading it compares its checksum.
            archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        return _load_any_protocol(path, mmap=True)
    except Exception:  # damaged, in torch's old format, or on a system that cannot map files: read whole
        return _load_without_running_code(path)


def _load_any_protocol(path: Path, *, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            # torch warns of each pickle protocol that is not its default, and then refuses it.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
        return read_any_protocol(path)


def _require_whole_archive(path: Path) -> None:
    """Raise zipfile.BadZipFile if the end is missing, or a byte has changed: torch reads such weights as they are.

    The old format of torch has no checksums.
    """
    with path.open("rb") as file:
        if not file.read(4).startswith(_ZIP_START):
            return
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("its end is missing")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (OSError, ValueError) as error:
        raise zipfile.BadZipFile("its table of contents is broken") from error
    if broken is not None:
        raise zipfile.BadZipFile(f"{broken} has changed since it was written")


def detect_format(content: Mapping[str, Any]) -> str | None:
    """Name the format of a loaded checkpoint: one of this module's four constants, or None."""
    state = content.get("model_state_dict")
    if isinstance(state, Mapping):
        if _has_names(state, "entity_embeddings."):
            return NATIVE
        if _has_names(state, "entity_representations."):
            return CONVERTED if "model_config" in content else PYKEEN_TRAINING_LOOP
    # `pykeen.checkpoints.save_model` puts the state dict one level down.
    nested = content.get("state_dict")
    weights = nested if isinstance(nested, Mapping) else content
    return PYKEEN_STATE_DICT if _has_names(weights, "entity_representations.") else None


def _has_names(state: Mapping[Any, Any], start: str) -> bool:
    return any(isinstance(name, str) and name.startswith(start) for name in state)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a native checkpoint.

    Raises InputError if the file is not one; the message says how to use PyKEEN's.
    """
    content = read_checkpoint_file(path)
    require_native(content, source=path)
    return content


def require_native(content: Mapping[str, Any], *, source: str | Path) -> None:
    """Raise InputError if a checkpoint's content is not native, or has no sizes."""
    detected = detect_format(content)
    if detected in (CONVERTED, PYKEEN_STATE_DICT, PYKEEN_TRAINING_LOOP):
        raise InputError(
            f"{source}: is a PyKEEN checkpoint; analyse it with run_tracin.py, which reads both formats, or make a "
            "native one of it with convert_checkpoint.py --to native"
        )
    if detected is None:
        raise InputError(f"{source}: holds no ConvE weights (model_state_dict); use a checkpoint of train_pytorch.py")
    missing = [name for name in _REQUIRED_CONFIG if name not in content.get("model_config", {})]
    if missing:
        raise InputError(f"{source}: its model_config lacks {', '.join(missing)}; use a checkpoint of train_pytorch.py")


def build_model(checkpoint: Mapping[str, Any], *, source: str | Path = "checkpoint") -> ConvE:
    """Build the ConvE of a native checkpoint, in eval mode, weights loaded strictly, in memory of its own.

    Raises InputError if weights and sizes disagree or a weight is not finite; `source` names the file.
    """
    return _build(checkpoint, source, copy=True)


def take_model(checkpoint: Mapping[str, Any], *, source: str | Path = "checkpoint") -> ConvE:
    """Do the same with the checkpoint's own weights: a large table is in memory once, and what changes it, both."""
    return _build(checkpoint, source, copy=False)


def _build(checkpoint: Mapping[str, Any], source: str | Path, *, copy: bool) -> ConvE:
    model = ConvE.with_empty_tables(require_conve(checkpoint, source=source))
    kinds = {name: weight.dtype for name, weight in model.state_dict().items()}
    weights = {
        name: weight.detach().to(kinds[name], copy=copy).contiguous()
        for name, weight in checkpoint["model_state_dict"].items()
    }
    model.load_state_dict(weights, strict=True, assign=True)
    require_sound_weights(model.state_dict(), source=source)
    return model.eval()


def require_conve(checkpoint: Mapping[str, Any], *, source: str | Path) -> ConvEConfig:
    """Return the sizes of a native checkpoint; raise InputError if its weights are not those of such a ConvE."""
    state = checkpoint["model_state_dict"]
    try:
        config = conve_config({"entity_bias": "entity_bias" in state, **checkpoint["model_config"]})
        require_names(state, possible_shapes(config))
        require_shapes(state, config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return config


def uses_inverse_triples(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's relation table holds inverse relations, too."""
    return bool(checkpoint.get("training_config", {}).get("inverse_triples", False))


def require_matching_mappings(
    checkpoint: Mapping[str, Any], entities: Vocabulary, relations: Vocabulary, *, source: str | Path
) -> None:
    """Raise InputError if a checkpoint was trained with other ids than the two mappings give.

    The counts are compared, and the digests if the checkpoint has them.
    """
    config = checkpoint["model_config"]
    relation_rows = count_relation_rows(len(relations), inverse_triples=uses_inverse_triples(checkpoint))
    for mapping, rows, expected in (
        (entities, config["num_entities"], len(entities)),
        (relations, config["num_relations"], relation_rows),
    ):
        if rows != expected:
            remedy = f"use the {mapping.kind} mapping of its training run"
            if mapping is relations and rows == count_relation_rows(expected, inverse_triples=True):
                # A bare state dict of PyKEEN does not say it, and its conversion cannot.
                remedy += ", or, if it has inverse triples without saying so, the PyKEEN file it was converted from"
            counts = f"has {len(mapping)} labels, but {source} has {rows} {mapping.kind} embeddings"
            raise InputError(f"{mapping.path}: {counts}; {remedy}")
    require_same_digests(checkpoint, {m.kind: m.digest() for m in (entities, relations)}, source=source)


def require_same_digests(checkpoint: Mapping[str, Any], digests: Mapping[str, str], *, source: str | Path) -> None:
    """Raise InputError if the checkpoint was trained with another mapping than `digests` ({kind: digest}) say.

    Checkpoints without a digest (other origins) pass: there is nothing to compare.
    """
    for kind, digest in digests.items():
        stored = checkpoint.get("mapping_digest", {}).get(kind, digest)
        if stored != digest:
            raise InputError(
                f"{source}: was trained with another {kind} mapping than the one given; "
                f"use the {kind}-to-id file of its training run"
            )


def _first_sentence(error: Exception) -> str:
    # What torch writes behind it is for those who read its source.
    return " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
