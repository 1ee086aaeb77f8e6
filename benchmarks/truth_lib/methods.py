"""Everything that scores training triples for a test triple: TracIn, Gauss–Newton, and simple rules.

A method takes a model, its setup, n test triples (n, 3) and N training triples (N, 3) in the files' ids and returns
(n, N) scores; higher means that the test triple's score is lower without the training triple.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch

from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.effects import GaussNewtonMethod
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.scorers import LAST_LAYERS, ConvEScorer
from conve_tracin.influence.training_loss import Objective, TrainingLoss
from conve_tracin.model.conve import ConvE
from truth_lib.setups import Setup

Method = Callable[[ConvE, Setup, np.ndarray, np.ndarray], np.ndarray]

RECOMMENDED = "gauss-newton (recommended)"
EMBEDDINGS = ("entity_embeddings.weight", "relation_embeddings.weight")


def tracin(
    names: tuple[str, ...] | None, model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Score by the documented definition, over the parameters `names` or all."""
    analyzer = TracInAnalyzerPyTorch(model, last_layer_names=names, inverse_triples=setup.config.inverse_triples)
    return analyzer.gradient_products(test, train).numpy()


def tracin_with_training_loss(model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Score by TracIn with the objective of the training as ℓ, over all parameters."""
    method = TrainingLoss(
        ConvEScorer(model, inverse_triples=setup.config.inverse_triples),
        objective=Objective.of(asdict(setup.config)),
        training_triples=train,
    )
    return method.products(test, train).numpy()


def without_embeddings(model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Score by the definition, over all parameters but the two tables."""
    names = tuple(name for name, _ in model.named_parameters() if name not in EMBEDDINGS)
    return tracin(names, model, setup, test, train)


def recommended_method(setup: Setup) -> GaussNewtonMethod:
    """Return the Gauss–Newton method with the constants for models that are trained as the setup says."""
    config = setup.config
    return GaussNewtonMethod.for_training(
        config.training_approach, loss=config.loss, query_weights=config.query_weights
    )


def gauss_newton(
    settings: dict[str, float], model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Score by the row-wise Gauss–Newton method; `settings` replace the constants of the recommended one."""
    config = setup.config
    found = GaussNewton(
        model,
        training_approach=config.training_approach,
        loss=config.loss,
        query_weights=config.query_weights,
        damping=settings.get("damping", 1.0),
        inverse_triples=config.inverse_triples,
    )
    found.method = replace(found.method, **{name: value for name, value in settings.items() if name != "damping"})
    return found.products(test, train).numpy()


@torch.no_grad()
def query_cosine(model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Compare the query vectors of test and training triples, whatever their tails."""
    vectors = []
    for triples in (test, train):
        heads, relations, _ = torch.from_numpy(setup.model_triples(triples)[: len(triples)]).unbind(dim=1)
        vectors.append(torch.nn.functional.normalize(model.encode(heads, relations), dim=1))
    return (vectors[0] @ vectors[1].T).numpy()


def query_cosine_same_tail(model: ConvE, setup: Setup, test: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Compare the query vectors of training triples with the test triple's tail; 0 for the others."""
    return query_cosine(model, setup, test, train) * (test[:, None, 2] == train[None, :, 2])


def sharing(
    rule: Callable[..., np.ndarray], _model: ConvE, _setup: Setup, test: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Score 1 where the labels agree as `rule` says, else 0."""
    equal = {name: test[:, None, i] == train[None, :, i] for i, name in enumerate(("head", "relation", "tail"))}
    equal["any"] = (test[:, None, [0, 0, 2, 2]] == train[None, :, [0, 2, 0, 2]]).any(axis=2)
    return rule(equal).astype(np.float64)


BASELINES: dict[str, Method] = {
    "shares (h, r) or (r, t)": partial(sharing, lambda same: same["relation"] & (same["head"] | same["tail"])),
    "same (r, t)": partial(sharing, lambda same: same["relation"] & same["tail"]),
    "same (h, r)": partial(sharing, lambda same: same["relation"] & same["head"]),
    "same tail": partial(sharing, lambda same: same["tail"]),
    "shares an entity": partial(sharing, lambda same: same["any"]),
    "cosine of query vectors": query_cosine,
    "cosine of query vectors, same tail": query_cosine_same_tail,
}
TRACIN: dict[str, Method] = {
    "TracIn, last layers": partial(tracin, LAST_LAYERS[:2]),
    "TracIn, all parameters": partial(tracin, None),
    "TracIn, all parameters, training's objective": tracin_with_training_loss,
    "TracIn, without the embeddings": without_embeddings,
    "TracIn, embeddings alone": partial(tracin, EMBEDDINGS),
}
NO_SHARES = {"same_tail_share": 0.0, "same_query_share": 0.0}
LABELS_ALONE = {"competition": 0.0, **NO_SHARES}
GAUSS_NEWTON: dict[str, Method] = {
    **{
        f"Gauss–Newton rows, labels alone, damping {damping}": partial(
            gauss_newton, {"damping": damping, **LABELS_ALONE}
        )
        for damping in (0.15, 0.5, 1.0, 1.5, 5.0)
    },
    "Gauss–Newton rows, without shares": partial(gauss_newton, NO_SHARES),
    **{
        f"gauss-newton, damping {damping}": partial(gauss_newton, {"damping": damping})
        for damping in (0.1, 0.5, 10.0, 100.0)
    },
    RECOMMENDED: partial(gauss_newton, {}),
}
# What `remove` removes by, besides the controls; the strongest simple rule is added there.
REMOVED_BY: dict[str, Method] = {
    **{name: GAUSS_NEWTON[name] for name in (RECOMMENDED, "gauss-newton, damping 100.0", "gauss-newton, damping 0.1")},
    "Gauss–Newton rows, labels alone": partial(gauss_newton, LABELS_ALONE),
    "TracIn, embeddings alone": TRACIN["TracIn, embeddings alone"],
    "TracIn, all parameters": TRACIN["TracIn, all parameters"],
    "TracIn, last layers": TRACIN["TracIn, last layers"],
}
