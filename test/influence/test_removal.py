"""What is left out: the control against its definition, and places against loops."""

from collections import Counter

import numpy as np
import pytest

from conve_tracin.data.keys import places_of
from conve_tracin.influence.removal import draw_control, entities_lost, entities_shared


def random_graph(seed, *, count=300, entities=12):
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, (entities, 3, entities), (count, 3))
    return np.unique(drawn, axis=0), generator


def kind_of(triple, prediction):
    """Which of the prediction's two entities are at an end of the triple, by hand."""
    head, tail = prediction[0], prediction[2]
    return (head in (triple[0], triple[2]), tail in (triple[0], triple[2]))


@pytest.mark.parametrize("seed", range(5))
def test_the_control_has_as_many_other_triples_of_the_same_sides(seed):
    triples, generator = random_graph(seed)
    prediction = (0, 0, 1)
    near = [place for place, triple in enumerate(triples) if any(kind_of(triple, prediction))]
    removed = generator.permutation(near)[:8]
    excluded = np.append(removed, places_of(triples, np.array([prediction])))
    control = draw_control(triples, prediction, removed, excluded, np.random.default_rng(seed))
    assert len(set(control.tolist())) == 8
    assert not set(control.tolist()) & set(excluded.tolist())
    counts = [Counter(kind_of(triples[place], prediction) for place in places) for places in (removed, control)]
    left = Counter(kind_of(triples[place], prediction) for place in near if place not in excluded)
    for kind, wanted in counts[0].items():
        # Triples of both entities are few: what they lack, others make up for.
        assert counts[1][kind] >= min(wanted, left[kind])
    again = draw_control(triples, prediction, removed, excluded, np.random.default_rng(seed))
    assert again.tolist() == control.tolist()
    other = draw_control(triples, prediction, removed, excluded, np.random.default_rng(seed + 100))
    assert other.tolist() != control.tolist()


def test_for_removed_triples_that_share_nothing_the_control_shares_an_entity_all_the_same():
    triples, _ = random_graph(0)
    prediction = (0, 0, 1)
    removed = np.array([place for place, triple in enumerate(triples) if not any(kind_of(triple, prediction))][:6])
    control = draw_control(triples, prediction, removed, removed, np.random.default_rng(0))
    assert len(control) == 6
    assert all(any(kind_of(triples[place], prediction)) for place in control)


def test_entities_with_too_few_triples_are_made_up_for_by_any_others():
    triples = np.array([(0, 0, 5), (0, 1, 6), (2, 0, 3), (3, 0, 4), (4, 1, 2), (5, 0, 6)])
    removed = np.array([0, 2, 3])
    control = draw_control(triples, (0, 0, 1), removed, removed, np.random.default_rng(0))
    assert 1 in control
    assert len(control) == 3
    assert not set(control.tolist()) & {0, 2, 3}
    everything = np.arange(5)
    assert draw_control(triples, (0, 0, 1), everything, everything, np.random.default_rng(0)).tolist() == [5]


def test_the_entities_that_a_triple_shares():
    triples = np.array([(2, 0, 3), (0, 1, 3), (3, 1, 0), (1, 2, 3), (1, 0, 0), (0, 0, 1)])
    assert entities_shared(triples, (0, 9, 1)).tolist() == [0, 1, 1, 2, 3, 3]


def test_all_places_of_triples_are_found():
    triples, generator = random_graph(3)
    many = generator.permutation(np.concatenate([triples, triples[:40]]))
    wanted = np.concatenate([triples[[1, 5, 60]], [(999, 2, 999)]])
    expected = [place for place, triple in enumerate(many.tolist()) if triple in wanted.tolist()]
    assert places_of(many, wanted).tolist() == expected
    assert places_of(many, wanted[:0]).tolist() == []


def test_entities_that_lose_all_their_triples():
    triples = np.array([(0, 0, 1), (1, 0, 2), (3, 0, 3)])
    assert entities_lost(triples, triples[1:2]).tolist() == [0, 3]
    assert entities_lost(triples, triples).tolist() == []
