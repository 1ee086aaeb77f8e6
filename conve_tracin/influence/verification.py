"""What trainings without some triples say about a prediction: its place after each, and whether seeds explain it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conve_tracin.data.queries import Queries
from conve_tracin.influence.explained import Triple
from conve_tracin.model.conve import ConvE
from conve_tracin.ranking.ranks import choose_batch_size, filtered_ranks


@dataclass(frozen=True)
class Measurement:
    """What one model says about a prediction.

    Attributes:
        score: on the model's own scale.
        rank: filtered, from 1, ties by their mean.
        lead: the score less that of the strongest other answer not known to be true; negative if that one is stronger,
            infinite if there is none. Unlike scores, leads of models trained with softmax cross-entropy compare.
    """

    score: float
    rank: float
    lead: float


@torch.no_grad()
def measure(model: ConvE, questions: np.ndarray, known: Queries) -> list[Measurement]:
    """Score and rank answers with a model in eval mode.

    Args:
        model: on the device of `known`.
        questions: triples (n, 3) in relation rows; the tail is the answer.
        known: the true tails of each distinct query, the answers included.
    """
    device = known.heads.device
    batches = torch.from_numpy(questions).to(device).split(choose_batch_size(model.config.num_entities))
    return [found for batch in batches for found in _measure_batch(model, batch, known)]


def _measure_batch(model: ConvE, questions: Tensor, known: Queries) -> list[Measurement]:
    heads, relations, tails = questions.unbind(dim=1)
    scores = model(heads, relations)  # (B, K)
    ids = known.find(heads, relations, num_relations=model.config.num_relations)
    known_rows, known_tails = known.tails_of(ids)
    ranks = filtered_ranks(scores, tails, known_rows, known_tails)
    own = scores.gather(1, tails[:, None])[:, 0]
    # The answer itself is among the known tails.
    scores[known_rows, known_tails] = -torch.inf
    leads = own - scores.amax(dim=1)
    columns = (own.double(), ranks, leads.double())
    return [Measurement(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(frozen=True)
class Removed:
    """A training triple that was left out, how often it stands in the file, and its influence if it was listed."""

    triple: Triple
    count: int
    influence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A prediction, what was left out for it, and what the models trained without it say; a list has one for each seed.

    Attributes:
        triple, side: the prediction, and which end of it is the answer.
        seeds: of the trainings of each kind.
        model: what the given model says.
        everything, without, others: what those say that were trained on all triples, without the proponents, and
            without as many others.
        proponents: what was left out; those of all predictions if they were left out together.
        controls: what was left out instead, for each seed.
        remarks: what readers have to know.
    """

    triple: Triple
    side: str
    seeds: list[int]
    model: Measurement
    everything: list[Measurement]
    without: list[Measurement]
    others: list[Measurement]
    proponents: list[Removed]
    controls: list[list[Removed]]
    remarks: list[str] = field(default_factory=list)

    @property
    def beyond_seeds(self) -> bool | None:
        """Whether every model without the proponents leads by less than every other one; None for a single seed."""
        if len(self.without) < 2:
            return None
        return max(leads_of(self.without)) < min(leads_of([*self.everything, *self.others]))

    @property
    def control_beyond_seeds(self) -> bool | None:
        """Whether every model without the others leads by less than every one trained on everything."""
        if len(self.without) < 2:
            return None
        return max(leads_of(self.others)) < min(leads_of(self.everything))


def leads_of(measured: Sequence[Measurement]) -> list[float]:
    """Return the lead of each."""
    return [each.lead for each in measured]


def median_rank(measured: Sequence[Measurement]) -> float:
    """Return the median of the ranks."""
    return statistics.median(each.rank for each in measured)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation (None for one value), lowest and highest of finite values, else None each."""
    if not np.isfinite(values).all():
        return dict.fromkeys(("mean", "standard_deviation", "lowest", "highest"))
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values),
        "standard_deviation": deviation,
        "lowest": min(values),
        "highest": max(values),
    }
