"""What training will take: its time and memory, estimated from the sizes of graph and model.

The estimates are meant to tell minutes from days. They are counted in products of the batches' matrices, whose rate on
one core was measured on Hetionet (float32, an AMD EPYC); embeddings, optimizer and evaluation are small beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conve_tracin.settings import ConvEConfig, TrainingConfig

# Of one core: floating-point operations a second in the matrix products of training.
OPERATIONS_A_SECOND = 3e10
# What a process takes before it holds a model, and the scores or their exponentials of a batch, in bytes.
BYTES_OF_A_PROCESS = 4e8
BYTES_OF_SCORES = 1.3e8
# Weight, gradient, and the two moments of Adam, of 4 bytes each.
BYTES_OF_A_PARAMETER = 16
# A triple as ids, in both directions, sorted by its query.
BYTES_OF_A_TRIPLE = 150


@dataclass(frozen=True)
class Sizes:
    """The sizes of a prepared graph; `visits` are the queries of an epoch."""

    entities: int
    relations: int
    triples: int
    visits: int


@dataclass(frozen=True)
class Forecast:
    """Time of one core and memory of training."""

    seconds: float
    gigabytes: float


def forecast_training(sizes: Sizes, settings: Mapping[str, Any]) -> Forecast:
    """Estimate what training takes with `settings`, the defaults standing for those that are left out."""
    model = {name: settings[name] for name in ConvEConfig.__dataclass_fields__ if name in settings}
    config = ConvEConfig(num_entities=sizes.entities, num_relations=sizes.relations, **model)
    epochs = settings.get("num_epochs", TrainingConfig.num_epochs)
    dim, features, channels = config.embedding_dim, config.feature_map_size, config.output_channels
    kernel = config.kernel_height * config.kernel_width
    scored = min(sizes.entities, settings.get("entity_sample") or sizes.entities)
    # A product forward and two backward, two operations each, of scores, linear layer and convolution.
    operations = 6 * (dim * scored + dim * features + kernel * features)
    parameters = dim * (sizes.entities + 2 * sizes.relations + features) + kernel * channels
    return Forecast(
        seconds=epochs * sizes.visits * operations / OPERATIONS_A_SECOND,
        gigabytes=(BYTES_OF_A_PROCESS + BYTES_OF_SCORES + BYTES_OF_A_PARAMETER * parameters
                   + BYTES_OF_A_TRIPLE * sizes.triples) / 1e9,
    )  # fmt: skip


def sizes_of(data: Mapping[str, Path], settings: Mapping[str, Any]) -> Sizes:
    """Read the sizes of a prepared graph and count the queries of an epoch of training."""
    from conve_tracin.data.index import read_indexed
    from conve_tracin.data.queries import Queries, examples_of
    from conve_tracin.data.vocabulary import read_vocabulary

    entities = read_vocabulary(data["entity_to_id"], "entity")
    relations = read_vocabulary(data["relation_to_id"], "relation")
    triples = read_indexed(data["train"], entities, relations)
    examples = examples_of(triples, inverse_triples=settings.get("inverse_triples", False))
    return Sizes(len(entities), len(relations), len(triples), _count_visits(Queries.distinct(examples), settings))


def _count_visits(queries: Any, settings: Mapping[str, Any]) -> int:
    if settings.get("training_approach", TrainingConfig.training_approach) == "1vsall":
        return len(queries.tails)
    tails_per_visit = settings.get("tails_per_visit", TrainingConfig.tails_per_visit)
    if settings.get("query_weights", TrainingConfig.query_weights) == "tails" and tails_per_visit:
        return queries.visited_by_tails(tails_per_visit).num_visits
    return len(queries)


def duration_in_words(seconds: float) -> str:
    """Write a duration with the unit that suits it."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}"
    return "a minute" if seconds > 45 else "less than a minute"
