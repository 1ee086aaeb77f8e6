"""A six-entity graph: as ids, as files with their mappings, and a small ConvE that looks trained on it."""

import os
from dataclasses import dataclass
from pathlib import Path

# The models are so small that a second thread costs more than it brings, here and in what the tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch

from conve_tracin.model.conve import ConvE
from conve_tracin.report.charts import write_training_curves
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.run import TrainingData, train

ENTITIES = ("aspirin", "ibuprofen", "head ache", "fièvre", "MONDO:0005148", "PTGS2")
RELATIONS = ("treats", "inhibits", "associated with")
TREATS, INHIBITS, ASSOCIATED = range(3)

# Queries with one, two and three tails; a symmetric pair; an entity related to itself.
TRAIN = np.array(
    [
        (0, TREATS, 2), (0, TREATS, 3), (0, TREATS, 4),
        (1, TREATS, 2), (1, TREATS, 3),
        (0, INHIBITS, 5), (1, INHIBITS, 5),
        (5, ASSOCIATED, 2), (2, ASSOCIATED, 5),
        (4, ASSOCIATED, 3), (3, ASSOCIATED, 3),
    ]
)  # fmt: skip
VALID = np.array([(1, TREATS, 4), (5, ASSOCIATED, 3)])
TEST = np.array([(5, ASSOCIATED, 4), (4, ASSOCIATED, 5), (4, ASSOCIATED, 2)])

DIGEST = {"entity": "e" * 64, "relation": "r" * 64}
SMALL_CONVE = {
    "embedding_dim": 12, "embedding_height": 3, "embedding_width": 4,
    "output_channels": 4, "kernel_height": 2, "kernel_width": 3,
}  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape what is no Unicode, such as some names of files: pytest-xdist sends reports as UTF-8."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def trains_in_bfloat16(monkeypatch):
    """Let mixed precision train in bfloat16 on every processor, as on those that have it."""
    monkeypatch.setattr("conve_tracin.training.state.supports_bfloat16", lambda _: True)


@dataclass(frozen=True)
class Graph:
    """The six-entity graph: splits as (N, 3) int64 ids, and the labels in the order of their ids."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    entities: tuple[str, ...] = ENTITIES
    relations: tuple[str, ...] = RELATIONS


@dataclass(frozen=True)
class GraphFiles:
    """The same graph on disk."""

    directory: Path
    train: Path
    valid: Path
    test: Path
    entity_to_id: Path
    relation_to_id: Path

    def arguments(self) -> list[str]:
        """The five file flags of train_pytorch.py."""
        names = ("train", "valid", "test", "entity_to_id", "relation_to_id")
        return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(self, name)))]


@pytest.fixture
def graph() -> Graph:
    return Graph(TRAIN.copy(), VALID.copy(), TEST.copy())


@pytest.fixture
def graph_files(graph, tmp_path) -> GraphFiles:
    directory = tmp_path / "graph"
    directory.mkdir()
    lines = {
        "train": triple_lines(graph, graph.train),
        "valid": triple_lines(graph, graph.valid),
        "test": triple_lines(graph, graph.test),
        "entity_to_id": mapping_lines(graph.entities),
        "relation_to_id": mapping_lines(graph.relations),
    }
    paths = {}
    for name, content in lines.items():
        paths[name] = directory / f"{name}.tsv"
        paths[name].write_text("".join(content), encoding="utf-8", newline="\n")
    return GraphFiles(directory, **paths)


@pytest.fixture
def run(graph, tmp_path):
    """Train on the graph into tmp_path/NAME; settings of training, sizes of the model and splits can be changed."""

    def run(name, *, resume=None, sizes=(), digest=DIGEST, splits=(), **settings):
        chosen = {"train": graph.train, "valid": graph.valid, "test": graph.test, **dict(splits)}
        defaults = {"num_epochs": 6, "batch_size": 4, "learning_rate": 0.01, "lr_decay": 0.9, "checkpoint_frequency": 3}
        return train(
            TrainingData(**chosen, num_entities=6, num_relations=3, mapping_digest=digest),
            TrainingConfig(**defaults | settings),
            model_sizes={**SMALL_CONVE, **dict(sizes)},
            output_dir=tmp_path / name,
            resume_from=resume,
            draw_curves=write_training_curves,
        )

    return run


@pytest.fixture
def small_conve() -> ConvE:
    """A float64 ConvE for the graph, in eval mode, with weights and BatchNorm statistics far from their start."""
    return make_small_conve()


def make_small_conve(*, num_entities: int = len(ENTITIES), num_relations: int = len(RELATIONS), **sizes) -> ConvE:
    generator = torch.Generator().manual_seed(6)
    model = ConvE(num_entities=num_entities, num_relations=num_relations, **SMALL_CONVE | sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        for norm in (model.bn0, model.bn1, model.bn2):
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator, dtype=torch.float64))
            norm.running_var.copy_(0.3 + 2 * torch.rand(norm.running_var.shape, generator=generator).double())
            norm.weight.add_(1)
            norm.num_batches_tracked.fill_(100)
    return model.eval()


def triple_lines(graph: Graph, triples: np.ndarray) -> list[str]:
    """Write ids as `head<TAB>relation<TAB>tail` lines."""
    return [f"{graph.entities[h]}\t{graph.relations[r]}\t{graph.entities[t]}\n" for h, r, t in triples]


def mapping_lines(labels: tuple[str, ...]) -> list[str]:
    """Write labels as `label<TAB>id` lines."""
    return [f"{label}\t{position}\n" for position, label in enumerate(labels)]
