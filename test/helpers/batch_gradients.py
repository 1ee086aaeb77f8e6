"""Losses and gradients of whole batches, as one process or, started as a script, several of them compute them."""

import sys

import torch
from compiling import TRACING_ALONE, compiling_by
from conftest import TRAIN, make_small_conve

from conve_tracin.compute import parallel
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.loop import next_batch, train_batch, training_queries
from conve_tracin.training.state import TrainingState

CASES = [
    *((approach, loss, "equal") for approach in ("1vsall", "kvsall") for loss in ("bce", "ce")),
    ("kvsall", "ce", "tails"),
]
BATCH_SIZE = 5
SMOOTHING = 0.2


def make_model():
    """A float64 model with a bias and inverse relations, in eval mode: BatchNorm is frozen, and nothing is dropped."""
    return make_small_conve(num_relations=6, entity_bias=True)


def make_queries(approach, loss="bce", query_weights="equal", tails_per_visit=0):
    config = TrainingConfig(
        training_approach=approach, loss=loss, query_weights=query_weights,
        tails_per_visit=tails_per_visit, inverse_triples=True, label_smoothing=SMOOTHING,
        batch_size=BATCH_SIZE,
    )  # fmt: skip
    return config, training_queries(TRAIN, config, torch.device("cpu"))


def batches_of(queries):
    """Cut all queries into batches; two processes can share each of them."""
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(3))
    batch = slice(0, 0)
    while batch.stop < len(queries):
        batch = next_batch(batch.stop, len(queries), BATCH_SIZE, at_least=4)
        yield order[batch]


def gradients_of_batches(approach, loss, query_weights, *, compiled=False):
    """Train on each batch with a learning rate of 0; list (loss, gradients by parameter)."""
    config, queries = make_queries(approach, loss, query_weights)
    model = make_model()
    state = TrainingState(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        scheduler=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        shuffle=None,
        batch_size=BATCH_SIZE,
    )
    batch_loss = parallel.average_gradients(BatchLoss(model, config, compiled=compiled))
    results = []
    for chosen in batches_of(queries):
        total = parallel.all_reduce(train_batch(state, queries, chosen, batch_loss))
        results.append((total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}))
    return results


def main(output):
    with parallel.processes():
        assert parallel.world_size() == 2
        results = {
            (case, compiled): gradients_of_batches(*case, compiled=compiled)
            for case in CASES
            for compiled in (False, True)
        }
        if parallel.is_main_process():
            torch.save(results, output)


if __name__ == "__main__":
    with compiling_by(TRACING_ALONE) as compiled_functions:
        main(sys.argv[1])
    assert compiled_functions
