"""From a checkpoint's path to a scorer and a method, whatever the format: native, converted, or PyKEEN's own."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conve_tracin.checkpoint.conversion import assumed_training, stored_learning_rate, stored_mapping_digest
from conve_tracin.checkpoint.epochs import EPOCH_CHECKPOINTS, epoch_in
from conve_tracin.checkpoint.native import (
    NATIVE,
    PYKEEN_STATE_DICT,
    PYKEEN_TRAINING_LOOP,
    detect_format,
    history_as_text,
    load_checkpoint,
    read_checkpoint_outline,
    require_conve,
    require_matching_mappings,
    require_native,
    require_same_digests,
    take_model,
    uses_inverse_triples,
)
from conve_tracin.checkpoint.pykeen import load_pykeen_model, read_pykeen_file, saved_mapping_digest
from conve_tracin.data.graph import Graph
from conve_tracin.data.index import Index, stamp_of
from conve_tracin.data.vocabulary import Vocabulary
from conve_tracin.errors import InputError
from conve_tracin.influence.method import module_of
from conve_tracin.influence.scorers import ConvEScorer, LoadedModel, PyKEENScorer
from conve_tracin.influence.trace import TracedCheckpoint
from conve_tracin.settings import DEFAULT_LEARNING_RATE, PredictionOptions, TracInOptions

if TYPE_CHECKING:
    from conve_tracin.checkpoint.pykeen import LoadedPyKEENModel


logger = logging.getLogger(__name__)

PIPELINE_MODEL = "trained_model.pkl"


def find_checkpoints(paths: Sequence[Path | str]) -> list[Path]:
    """Replace each directory by what it holds: a pipeline's model, or the checkpoints of all epochs in order.

    Raises InputError for a path that is not there, a directory that holds neither or checkpoints of two runs, and a
    checkpoint that is named twice.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file; give the path of a checkpoint")
        for checkpoint in _checkpoints_in(path) if path.is_dir() else [path]:
            if any(checkpoint.samefile(other) for other in found):
                raise InputError(f"{checkpoint}: is named twice, and would count twice; name it once")
            found.append(checkpoint)
    return found


def _checkpoints_in(directory: Path) -> list[Path]:
    if (directory / PIPELINE_MODEL).is_file():
        return [directory / PIPELINE_MODEL]
    numbered: dict[int, Path] = {}
    for file in sorted(directory.iterdir()):
        epoch = epoch_in(file)
        if epoch >= 0 and numbered.setdefault(epoch, file) != file:
            raise InputError(f"{file}: is of the same epoch as {numbered[epoch].name}; name the checkpoints")
    if not numbered:
        best = directory / "best_model.pt"
        example = f", such as {best}" if best.is_file() else ""
        raise InputError(
            f"{directory}: holds no {EPOCH_CHECKPOINTS} and no {PIPELINE_MODEL}; name a checkpoint{example}"
        )
    checkpoints = [numbered[epoch] for epoch in sorted(numbered)]
    _require_one_run(checkpoints)
    return checkpoints


def _require_one_run(checkpoints: Sequence[Path]) -> None:
    """Raise InputError where a checkpoint's history does not go on from that of an earlier epoch."""
    earlier: list[str] = []
    for path in checkpoints:
        history = history_as_text(_outline_of(path))
        if history and history[: len(earlier)] != earlier:
            raise InputError(f"{path}: is of another training run than the earlier epochs beside it; name checkpoints")
        earlier = history or earlier


def _outline_of(path: Path) -> dict[str, Any]:
    try:
        return read_checkpoint_outline(path)
    except InputError:
        # What cannot be read so is read later on, with the options of the run, or refused.
        return {}


def choose_learning_rates(checkpoints: Sequence[Path], options: TracInOptions) -> list[float]:
    """Give each checkpoint its η: the one that was asked for, else its own where there are several."""
    if options.learning_rate is not None or len(checkpoints) == 1:
        rate = DEFAULT_LEARNING_RATE if options.learning_rate is None else options.learning_rate
        return [rate] * len(checkpoints)
    stored = [stored_learning_rate(_content_of(path, options)) for path in checkpoints]
    return [DEFAULT_LEARNING_RATE if rate is None else rate for rate in stored]


def _content_of(path: Path, options: TracInOptions) -> dict[str, Any]:
    try:
        return read_checkpoint_outline(path)
    except InputError:
        if not options.trust_pickle:
            raise
    content = read_pykeen_file(path, trust_pickle=True)
    return content if isinstance(content, dict) else {}


class CheckpointLoader:
    """Loads checkpoints of one run; what it says of them, it says once.

    Args:
        options: of the run; those of a prediction suffice for `load_model`.
        entities, relations: the mappings of the run; checkpoints of other mappings are refused.
        learning_rates: {checkpoint: η}.
        device: where the models go.

    Attributes:
        graph: of all training triples, once it is known here.
        index: where the graph is stored; None if it is not.
    """

    def __init__(
        self,
        options: TracInOptions | PredictionOptions,
        *,
        entities: Vocabulary,
        relations: Vocabulary,
        learning_rates: Mapping[Path, float],
        device: str,
    ) -> None:
        self.options = options
        self.entities = entities
        self.relations = relations
        self.learning_rates = learning_rates
        self.device = device
        self.graph: Graph | None = None
        self.index: Index | None = None
        self._said: set[str] = set()
        self._has_warned_of_other_triples = False
        self._path_of_weights: dict[str, Path] = {}
        self._repeated: set[Path] = set()

    def __call__(self, path: Path) -> TracedCheckpoint:
        """Load a checkpoint, with the method that the options ask for.

        Raises InputError if it cannot be used with these mappings and options.
        """
        stamp = _stamp_of(path)
        loaded = self.load_model(path)
        # A training that goes on may have written another epoch there while this one was read.
        if self.index is not None and stamp is not None and stamp == _stamp_of(path):
            loaded = replace(loaded, keep_of_settings=partial(self.index.keep_of_model, path, stamp))
            image = self.options.embedding_height, self.options.embedding_width
            loaded.scorer.keep = loaded.keep_of_settings(("scores", image))
        method = module_of(self.options.method).build(loaded, self.options, self.graph, self._say)
        weight = self.learning_rates[path] if method.uses_learning_rate else 1 / len(self.learning_rates)
        return TracedCheckpoint(loaded.scorer, method, weight)

    def load_model(self, path: Path) -> LoadedModel:
        """Load a checkpoint's model, native or PyKEEN's."""
        return self._load_native(path) if self._is_native(path) else self._load_pykeen(path)

    def require_fitting(self, path: Path) -> None:
        """Raise InputError where a checkpoint says that it is of other mappings, or cannot be read, at little cost.

        Of several checkpoints the last is loaded when all others have been traced to; this is for before.
        """
        if not self._is_native(path):
            digests = stored_mapping_digest(_outline_of(path)) or saved_mapping_digest(path)
            require_same_digests({"mapping_digest": digests}, self._digests_of_mappings(), source=path)
            return
        content = read_checkpoint_outline(path)
        require_native(content, source=path)
        require_conve(content, source=path)
        require_matching_mappings(content, self.entities, self.relations, source=path)

    def warn(self, path: Path) -> None:
        """Log what to be careful about in a native checkpoint, once: a run that goes on may never load it."""
        content = read_checkpoint_outline(path) if self._is_native(path) else {}
        weights = content.get("model_state_dict")
        if not isinstance(weights, dict):
            return
        try:
            require_matching_mappings(content, self.entities, self.relations, source=path)
        except InputError:
            return  # What does not fit is refused when it is loaded, with the first of its faults.
        self._warn_of_other_triples(content.get("training_triples_digest"), path)
        self._warn_of_same_weights(weights.get("fc.weight"), path)

    def _is_native(self, path: Path) -> bool:
        try:
            detected = detect_format(read_checkpoint_outline(path))
        except InputError:
            # Only a file that needs unpickling is worth another look, and then it is PyKEEN's.
            if self.options.trust_pickle and path.is_file():
                return False
            raise
        if detected is None:
            raise InputError(f"{path}: holds neither a native checkpoint nor weights of PyKEEN; use another file")
        return detected == NATIVE

    def _load_native(self, path: Path) -> LoadedModel:
        checkpoint = load_checkpoint(path)
        model = take_model(checkpoint, source=path).to(self.device)
        require_matching_mappings(checkpoint, self.entities, self.relations, source=path)
        self._say(f"{path}: a native checkpoint, {_epoch(checkpoint.get('epoch'))}")
        self._warn_of_other_triples(checkpoint.get("training_triples_digest"), path)
        self._warn_of_same_weights(checkpoint["model_state_dict"]["fc.weight"], path)
        self._say_that_the_size_is_known(path)
        return LoadedModel(
            path=path,
            scorer=ConvEScorer(model, inverse_triples=uses_inverse_triples(checkpoint)),
            training_config=assumed_training(NATIVE) | checkpoint.get("training_config", {}),
        )

    def _load_pykeen(self, path: Path) -> LoadedModel:
        loaded = load_pykeen_model(
            path,
            trust_pickle=self.options.trust_pickle,
            num_relations=len(self.relations),
            embedding_height=self.options.embedding_height,
            embedding_width=self.options.embedding_width,
        )
        self._require_matching_entities(loaded, path)
        model = loaded.model.to(self.device)
        inverse = ", with inverse triples" if loaded.inverse_triples else ""
        self._say(f"{path}: {type(model).__name__} of PyKEEN ({loaded.source_format}), {_epoch(loaded.epoch)}{inverse}")
        self._warn_of_other_triples(loaded.training_triples_digest, path)
        if loaded.source_format not in (PYKEEN_STATE_DICT, PYKEEN_TRAINING_LOOP):
            self._say_that_the_size_is_known(path)
        return LoadedModel(
            path=path,
            scorer=PyKEENScorer(model),
            training_config=assumed_training(loaded.source_format) | loaded.training_config,
            is_native=False,
        )

    def _require_matching_entities(self, loaded: "LoadedPyKEENModel", path: Path) -> None:
        if loaded.model.num_entities != len(self.entities):
            raise InputError(
                f"{self.entities.source}: has {len(self.entities)} labels, but {path} has "
                f"{loaded.model.num_entities} entity embeddings; use the entity mapping of its training run"
            )
        require_same_digests({"mapping_digest": loaded.mapping_digest}, self._digests_of_mappings(), source=path)

    def _digests_of_mappings(self) -> dict[str, str]:
        return {mapping.kind: mapping.digest() for mapping in (self.entities, self.relations)}

    def _warn_of_other_triples(self, stored: str | None, path: Path) -> None:
        # Checkpoints of other origins do not tell. Of several, which are mostly of one run, one is named.
        if stored is None or self.graph is None or self._has_warned_of_other_triples:
            return
        if stored != self.graph.digest:
            self._has_warned_of_other_triples = True
            logger.warning(
                f"{path}: was trained on other triples than those of --train, to which it is traced; "
                "unless that is meant, give the file of its training run"
            )

    def _warn_of_same_weights(self, layer: Any, path: Path) -> None:
        if not isinstance(layer, Tensor):
            return
        # Every step moves this layer, so that it tells epochs apart, and it is small beside the tables.
        digest = hashlib.sha256(layer.detach().contiguous().numpy()).hexdigest()
        first = self._path_of_weights.setdefault(digest, path)
        if first != path and path not in self._repeated:
            self._repeated.add(path)
            logger.warning(f"{path}: holds the weights of {first}, which count twice; name each epoch once")

    def _say_that_the_size_is_known(self, path: Path) -> None:
        if self.options.embedding_height is not None or self.options.embedding_width is not None:
            self._say(f"--embedding-height and --embedding-width have no effect on {path}, which holds its own")

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.info(message)


class NativeCheckpointLoader(CheckpointLoader):
    """Loads native checkpoints; of others it says which script reads them."""

    def _is_native(self, path: Path) -> bool:  # noqa: ARG002 - `load_checkpoint` refuses the others
        return True


def _stamp_of(path: Path) -> list[int] | None:
    try:
        return stamp_of(path)
    except OSError:
        return None


def _epoch(epoch: int | None) -> str:
    return "of an unknown epoch" if epoch is None else f"epoch {epoch}"
