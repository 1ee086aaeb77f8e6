"""What models say about predictions, against a loop over all entities, and when seeds explain it."""

import math

import numpy as np
import pytest
import torch
from conftest import TRAIN, VALID, make_small_conve

from conve_tracin.data.queries import known_tails
from conve_tracin.influence.verification import Measurement, Verification, measure, spread


def test_score_rank_and_lead_are_those_of_a_loop():
    model = make_small_conve()
    asked = np.array([(0, 0, 2), (1, 0, 4), (5, 2, 4), (1, 0, 2)])
    known = np.concatenate([TRAIN, VALID, asked])
    found = measure(model, asked, known_tails([known], inverse_triples=False))
    for (head, relation, tail), measured in zip(asked.tolist(), found, strict=True):
        scores = [
            model.score(*(torch.tensor([value]) for value in (head, relation, other))).item() for other in range(6)
        ]
        true = {t for h, r, t in known.tolist() if (h, r) == (head, relation)}
        others = [scores[other] for other in range(6) if other not in true]
        assert measured.score == pytest.approx(scores[tail])
        assert measured.rank == 1 + sum(other > scores[tail] for other in others)
        assert measured.lead == pytest.approx(scores[tail] - max(others))


def test_an_answer_without_a_rival_leads_without_end():
    everything = np.array([(0, 0, tail) for tail in range(6)])
    (found,) = measure(make_small_conve(), everything[:1], known_tails([everything], inverse_triples=False))
    assert (found.rank, found.lead) == (1, math.inf)
    assert spread([math.inf, 1.0]) == dict.fromkeys(("mean", "standard_deviation", "lowest", "highest"))


def verification(everything, without, others):
    measured = [[Measurement(0.0, 1.0, lead) for lead in leads] for leads in (everything, without, others)]
    return Verification(
        triple=(0, 0, 1), side="tail", seeds=list(range(len(without))), model=measured[0][0],
        everything=measured[0], without=measured[1], others=measured[2], proponents=[], controls=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("leads", "beyond", "control"),
    [
        (([3, 4], [1, 2], [3, 5]), True, False),
        (([3, 4], [1, 3], [3, 5]), False, False),
        (([3, 4], [-1, -2], [1, 2]), True, True),
        (([3, 4], [1, 2], [1.5, 5]), False, False),
        (([3, 4], [5, 6], [7, 8]), False, False),
        (([3], [1], [2]), None, None),
    ],
)
def test_only_what_lies_behind_all_other_trainings_is_more_than_seeds_change(leads, beyond, control):
    found = verification(*leads)
    assert found.beyond_seeds is beyond
    assert found.control_beyond_seeds is control
