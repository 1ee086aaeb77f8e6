"""What is measured: a data set, and how its models are trained."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conve_tracin.data.queries import count_relation_rows, examples_of, known_tails
from conve_tracin.data.triples import read_triples
from conve_tracin.data.vocabulary import read_vocabulary
from conve_tracin.errors import InputError
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import rank_triples
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.retrain import retrain
from conve_tracin.training.run import TrainingData

_SETTINGS = (
    "num_epochs", "batch_size", "learning_rate", "lr_decay", "label_smoothing", "training_approach", "inverse_triples",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A data set's folder and a training that is short but converges.

    Attributes:
        data_dir: holds train.txt, valid.txt, test.txt, entity_to_id.tsv and relation_to_id.tsv.
        config: the training; its seed is replaced for each retraining.
        embedding_height, embedding_width: d is their product.
        dropouts: of input, feature maps and query vector.
        more_sizes: other members of `ConvEConfig` that differ from its defaults.
        device: where models are trained; they score on the CPU.
    """

    data_dir: Path
    config: TrainingConfig
    embedding_height: int = 8
    embedding_width: int = 8
    dropouts: tuple[float, float, float] = (0.2, 0.2, 0.3)
    more_sizes: Mapping[str, int | bool] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Return a name for files and tables, such as umls-kvsall-inverse."""
        inverse = "-inverse" if self.config.inverse_triples else ""
        loss = "" if self.config.loss == "bce" else f"-{self.config.loss}-{self.config.query_weights}"
        return f"{self.data_dir.name}-{self.config.training_approach}{inverse}{loss}"

    def load(self) -> TrainingData:
        """Read the data set, with the relation ids of the files."""
        if not self.data_dir.is_dir():
            raise InputError(f"{self.data_dir}: no such folder; write it with prepare_data.py")
        entities = read_vocabulary(self.data_dir / "entity_to_id.tsv", "entity")
        relations = read_vocabulary(self.data_dir / "relation_to_id.tsv", "relation")
        splits = [
            read_triples(self.data_dir / f"{split}.txt", entities, relations) for split in ("train", "valid", "test")
        ]
        return TrainingData(*splits, len(entities.labels), len(relations.labels), {})

    def describe(self) -> dict[str, Any]:
        """Return what a trained model depends on besides its triples and its seed, as plain values.

        The device is left out: its rounding is one more source of noise, as the seed is.
        """
        data = self.load()
        settings = {name: getattr(self.config, name) for name in _SETTINGS}
        if self.config.loss != "bce":
            settings |= {"loss": self.config.loss, "query_weights": self.config.query_weights}
        if self.config.entity_sample:
            settings["entity_sample"] = self.config.entity_sample
        return {
            **settings,
            **self.model_config(data),
            "training_triples": len(data.train),
            "digest": zlib.crc32(np.concatenate([data.train, data.test]).tobytes()),
        }

    def model_config(self, data: TrainingData) -> dict[str, int | float | bool]:
        """Return the members of `ConvEConfig` that differ from its defaults."""
        return {
            "num_entities": data.num_entities,
            "num_relations": count_relation_rows(data.num_relations, inverse_triples=self.config.inverse_triples),
            "embedding_dim": self.embedding_height * self.embedding_width,
            "embedding_height": self.embedding_height,
            "embedding_width": self.embedding_width,
            "input_dropout": self.dropouts[0],
            "feature_map_dropout": self.dropouts[1],
            "output_dropout": self.dropouts[2],
            **self.more_sizes,
        }

    def train(self, data: TrainingData, triples: np.ndarray, seed: int) -> ConvE:
        """Train on `triples` (N, 3) for all epochs; returns the last epoch's model in eval mode."""
        config = replace(self.config, random_seed=seed)
        return retrain(triples, config, model_config=self.model_config(data), device=self.device).cpu()

    def model_triples(self, triples: np.ndarray) -> np.ndarray:
        """Translate triples (N, 3) to the model's relation ids: (N, 3), or (2N, 3) with the inverses behind."""
        return examples_of(triples, inverse_triples=self.config.inverse_triples)


@torch.no_grad()
def score_triples(model: ConvE, setup: Setup, triples: np.ndarray) -> np.ndarray:
    """Score triples (n, 3) of the files' ids as tails, and as heads where there are inverses: (n, 1) or (n, 2)."""
    scores = model.score(*torch.from_numpy(setup.model_triples(triples)).unbind(dim=1))
    return scores.reshape(-1, len(triples)).T.numpy()


@torch.no_grad()
def rank_tails(model: ConvE, setup: Setup, data: TrainingData, triples: np.ndarray | None = None) -> np.ndarray:
    """Rank the tails of triples (n, 3), the test triples without, among all entities, filtered: (n,)."""
    triples = data.test if triples is None else triples
    known = known_tails([data.train, data.valid, data.test, triples], inverse_triples=setup.config.inverse_triples)
    num_relations = model.config.num_relations
    forward = setup.model_triples(triples)[: len(triples)]
    return rank_triples(model, forward, known, num_relations=num_relations).numpy()
