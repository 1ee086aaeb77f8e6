"""Estimates of what training takes."""

import numpy as np
import pytest

from conve_tracin.commands import ADVISED_TRAINING, advised_training
from conve_tracin.data.queries import Queries, examples_of
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import ConvEConfig
from conve_tracin.training import forecast
from conve_tracin.training.forecast import Sizes, duration_in_words, forecast_training, sizes_of


def test_sizes_are_those_that_training_goes_through(graph, graph_files):
    data = {name: getattr(graph_files, name) for name in ("train", "entity_to_id", "relation_to_id")}
    found = sizes_of(data, ADVISED_TRAINING)
    queries = Queries.distinct(examples_of(graph.train, inverse_triples=True))
    assert found == Sizes(len(graph.entities), len(graph.relations), len(graph.train), len(queries))
    assert sizes_of(data, {"training_approach": "1vsall"}).visits == len(graph.train)


def test_time_is_that_of_the_matrix_products():
    """Of a multiplication of (B, d) by (d, K), and of the two that give its gradients, 2·B·d·K operations each."""
    small = forecast_training(Sizes(1_000, 10, 5_000, 800), {"num_epochs": 10})
    large = forecast_training(Sizes(1_000_000, 10, 5_000, 800), {"num_epochs": 10})
    operations = 10 * 800 * 6 * 200 * (1_000_000 - 1_000)
    sampled = forecast_training(Sizes(1_000_000, 10, 5_000, 800), {"num_epochs": 10, "entity_sample": 1_000})
    assert sampled.seconds == pytest.approx(small.seconds)
    assert large.seconds - small.seconds == pytest.approx(operations / forecast.OPERATIONS_A_SECOND)


def test_memory_holds_every_parameter_four_times():
    sizes = Sizes(300, 7, 0, 1)
    config = ConvEConfig(num_entities=300, num_relations=14)
    counted = sum(parameter.numel() for parameter in ConvE(**config.as_dict()).parameters())
    fixed = forecast.BYTES_OF_A_PROCESS + forecast.BYTES_OF_SCORES
    expected = (fixed + 4 * 4 * counted) / 1e9
    assert forecast_training(sizes, {}).gigabytes == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("num_triples", [5_000, 150_000, 16_000_000])
def test_advised_settings_have_a_forecast(num_triples):
    sizes = Sizes(num_triples // 10, 20, num_triples, num_triples // 3)
    assert np.isfinite(forecast_training(sizes, advised_training(num_triples, num_entities=sizes.entities)).seconds)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "less than a minute"), (80, "a minute"), (300, "5 minutes"), (7_200, "2 hours"), (400_000, "5 days")],
)
def test_durations_in_words(seconds, expected):
    assert duration_in_words(seconds) == expected
