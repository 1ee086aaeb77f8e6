#!/usr/bin/env python3
"""Influence: training triples per second of every engine and peer, on one model in one run.

    python benchmarks/influence.py --data FB15k-237.tar.gz

Without --data a synthetic graph of FB15k-237's sizes is drawn. Peers and the reference loop are timed on a sample.
The last line is JSON.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import common
from conve_tracin.compute.device import set_tf32
from conve_tracin.data.queries import count_relation_rows
from conve_tracin.influence import autodiff, reference
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.scorers import ConvEScorer
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import TrainingConfig
from conve_tracin.training.batch_loss import BatchLoss
from conve_tracin.training.loop import run_epoch, training_queries
from conve_tracin.training.state import new_state

LINEAR_AND_CONVOLUTION = ["fc.weight", "fc.bias", "conv1.weight", "conv1.bias"]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="FB15k-237 as published: folder or tar.gz")
    parser.add_argument("--loop-sample", type=int, default=400, help="triples for the reference loop")
    parser.add_argument("--peer-sample", type=int, default=256, help="triples for the peers")
    parser.add_argument("--training-batches", type=int, default=60, help="batches of 128 queries before measuring")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    set_tf32(allowed=False)

    triples, num_entities, num_relations = load_triples(args)
    binary = TrainingConfig(batch_size=128, training_approach="kvsall", learning_rate=0.003)
    advised = replace(binary, inverse_triples=True, loss="ce", query_weights="tails")
    models = [make_model(triples, num_entities, num_relations, config, args) for config in (binary, advised)]
    common.print_json(measure(*models, triples, args), args.output)


def load_triples(args: argparse.Namespace) -> tuple[np.ndarray, int, int]:
    """Read or draw the training triples (N, 3)."""
    if args.data is not None:
        return common.read_split(args.data)
    sizes = common.FB15K237
    return common.synthetic_triples(**sizes, seed=args.seed), sizes["entities"], sizes["relations"]


def make_model(
    triples: np.ndarray, num_entities: int, num_relations: int, config: TrainingConfig, args: argparse.Namespace
) -> ConvE:
    """Train a d = 200 model for a moment, so that BatchNorm and scores are not at their start."""
    torch.manual_seed(args.seed)
    num_rows = count_relation_rows(num_relations, inverse_triples=config.inverse_triples)
    sizes = {"num_entities": num_entities, "num_relations": num_rows}
    state = new_state(sizes, config, torch.device(args.device))
    sample = np.random.default_rng(args.seed).permutation(triples)[: args.training_batches * 128]
    queries = training_queries(sample, config, torch.device(args.device))
    with tqdm(desc="training", unit="query") as bar:
        run_epoch(state, queries, config, batch_loss=BatchLoss(state.model, config), on_batch=bar.update)
    return state.model.eval()


def measure(model: ConvE, advised: ConvE, triples: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Time everything and compare with the reference loop; `advised` is a model of the advised training."""
    generator = np.random.default_rng(args.seed + 1)
    tests = triples[generator.choice(len(triples), 16, replace=False)]
    sample = generator.choice(len(triples), args.loop_sample, replace=False)
    device = torch.device(args.device)

    rates: dict[str, float] = {}
    loop_scores = time_loop(model, tests[:1], triples[sample], rates, device)
    time_vmap(model, tests[:1], triples[sample[: args.peer_sample]], rates, device)
    time_captum(model, tests[:1], triples[sample[: args.peer_sample]], rates, device)
    time_dattri(model, tests[:1], triples[sample[: args.peer_sample]], rates, device)

    exact = TracInAnalyzerPyTorch(model)
    rounded = TracInAnalyzerPyTorch(model, use_mixed_precision=True)
    linear = TracInAnalyzerPyTorch(model, last_layer_names=["fc.weight", "fc.bias"])
    with_convolution = TracInAnalyzerPyTorch(model, last_layer_names=LINEAR_AND_CONVOLUTION)

    def products(analyzer: TracInAnalyzerPyTorch, count: int) -> Callable[[], Tensor]:
        return lambda: analyzer.gradient_products(tests[:count], triples)

    one = best_of(products(exact, 1), rates, "one test triple", len(triples))
    many = best_of(products(exact, 16), rates, "16 test triples", 16 * len(triples))
    best_of(products(rounded, 1), rates, "one test triple, mixed precision", len(triples))
    many_rounded = best_of(products(rounded, 16), rates, "16 test triples, mixed precision", 16 * len(triples))
    best_of(products(linear, 1), rates, "fc alone", len(triples))
    best_of(products(with_convolution, 1), rates, "fc and conv1", len(triples))
    norms = best_of(lambda: exact.self_products(triples), rates, "self-influence", len(triples))
    time_gauss_newton(model, tests[:4], triples, rates)
    time_advised(advised, tests[:5], triples, rates)

    few = torch.from_numpy(triples[sample[:50]]).to(device)
    loop_norms = reference.squared_norms(reference.triple_gradients(ConvEScorer(model), few), like=model.fc.weight)
    loop_rate = rates["backward loop"]
    return {
        "benchmark": "influence",
        "machine": common.machine(),
        "graph": "FB15k-237" if args.data else "synthetic, FB15k-237 sizes",
        "training_triples": len(triples),
        "embedding_dim": model.config.embedding_dim,
        "pairs_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio_to_backward_loop": {name: round(rate / loop_rate, 1) for name, rate in rates.items()},
        "largest_difference_from_loop": relative_difference(one[:, sample], loop_scores),
        "largest_difference_between_1_and_16": relative_difference(many[:1], one),
        "largest_self_influence_difference_from_loop": relative_difference(norms[sample[:50]], loop_norms.cpu()),
        "mixed_precision": agreement(many_rounded, many),
        "peak_memory_gb": round(common.peak_memory_gb(), 2),
    }


def best_of(work: Callable[[], Tensor], rates: dict[str, float], name: str, pairs: int, repeats: int = 2) -> Tensor:
    """Run `work` some times, note the best rate, and return the result."""
    best, result = min((common.seconds(work) for _ in tqdm(range(repeats), desc=name)), key=lambda pair: pair[0])
    rates[name] = pairs / best
    return result


def time_gauss_newton(model: ConvE, tests: np.ndarray, triples: np.ndarray, rates: dict[str, float]) -> None:
    """Time Gauss–Newton influence on one test triple at a time, each with curvatures of its own."""

    def one_by_one() -> Tensor:
        methods = [GaussNewton(model, training_approach="kvsall") for _ in tests]
        return torch.cat([one.products(test[None], triples) for one, test in zip(methods, tests, strict=True)])

    best_of(one_by_one, rates, "Gauss–Newton, one test triple", len(tests) * len(triples), repeats=1)


def time_advised(model: ConvE, tests: np.ndarray, triples: np.ndarray, rates: dict[str, float]) -> None:
    """Time Gauss–Newton influence with a model of the advised training: the first test triple, and each further one."""
    training = {"training_approach": "kvsall", "loss": "ce", "query_weights": "tails", "inverse_triples": True}
    method = GaussNewton(model, **training)
    name = "Gauss–Newton, advised training"
    best_of(lambda: method.products(tests[:1], triples), rates, f"{name}, first test triple", len(triples), repeats=1)
    rest = len(tests) - 1
    best_of(
        lambda: method.products(tests[1:], triples), rates, f"{name}, a further one", rest * len(triples), repeats=1
    )


def time_loop(
    model: ConvE, tests: np.ndarray, sample: np.ndarray, rates: dict[str, float], device: torch.device
) -> Tensor:
    """Time the backward loop over all parameters, and return its products (1, S)."""
    scorer = ConvEScorer(model)
    rows = torch.from_numpy(sample).to(device)
    gradients = [reference.triple_gradient(scorer, torch.from_numpy(tests[0]).to(device))]

    def products() -> Tensor:
        return reference.products_with(reference.triple_gradients(scorer, rows), gradients).cpu()

    return best_of(products, rates, "backward loop", len(sample))


def vmap_products(
    scorer: torch.nn.Module,
    test_gradients: list[dict[str, torch.Tensor]],
    training_triples: torch.Tensor,
    *,
    batch_size: int = 32,
) -> torch.Tensor:
    """Compute ∇ℓ(w; z) · g for n test gradients g and each training triple z (N, 3); returns (n, N)."""
    names = list(test_gradients[0])
    blocks = []
    for batch in training_triples.split(batch_size):
        gradients = autodiff.per_triple_gradients(scorer, batch, names=names)
        products = [
            sum(gradients[name].reshape(len(batch), -1) @ test_gradient[name].flatten() for name in names)
            for test_gradient in test_gradients
        ]
        blocks.append(torch.stack(products))  # (n, B)
    return torch.cat(blocks, dim=1)


def time_vmap(
    model: ConvE, tests: np.ndarray, sample: np.ndarray, rates: dict[str, float], device: torch.device
) -> None:
    """Time `vmap(grad)`, over all parameters and over fc alone."""
    scorer = ConvEScorer(model)
    rows = torch.from_numpy(sample).to(device)
    linear = ["fc.weight", "fc.bias"]
    for name, layers, count in (("vmap(grad)", None, 64), ("vmap(grad), fc alone", linear, len(rows))):
        gradients = [reference.triple_gradient(scorer, torch.from_numpy(tests[0]).to(device), names=layers)]
        chosen = rows[:count]
        best_of(
            lambda g=gradients, c=chosen: vmap_products(scorer, g, c, batch_size=16),
            rates,
            name,
            len(chosen),
            repeats=1,
        )


def time_captum(
    model: ConvE, tests: np.ndarray, sample: np.ndarray, rates: dict[str, float], device: torch.device
) -> None:
    """Time captum's TracInCP on the layers that it tracks fast, where captum is installed."""
    try:
        from captum.influence import TracInCP
    except ImportError:
        return
    scorer = ConvEScorer(model)
    data = torch.utils.data.TensorDataset(torch.from_numpy(sample).to(device), torch.ones(len(sample), device=device))
    tracer = TracInCP(
        scorer, data, checkpoints=["the model as it is"], checkpoints_load_func=lambda *_: 1.0,
        layers=["model.fc", "model.conv1"], loss_fn=torch.nn.BCEWithLogitsLoss(reduction="sum"),
        batch_size=32, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    test = (torch.from_numpy(tests).to(device), torch.ones(len(tests), device=device))
    best_of(lambda: tracer.influence(test), rates, "captum TracInCP, fc and conv1", len(sample), repeats=1)


def time_dattri(
    model: ConvE, tests: np.ndarray, sample: np.ndarray, rates: dict[str, float], device: torch.device
) -> None:
    """Time dattri's TracIn on fc alone and on all parameters, where dattri is installed."""
    try:
        from dattri.algorithm.tracin import TracInAttributor
        from dattri.task import AttributionTask
    except ImportError:
        return
    scorer = ConvEScorer(model).to(device)

    def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
        triples, labels = data
        scores = torch.func.functional_call(scorer, parameters, (triples[None] if triples.ndim == 1 else triples,))
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.expand_as(scores))

    def loader(rows: np.ndarray) -> torch.utils.data.DataLoader:
        dataset = torch.utils.data.TensorDataset(torch.from_numpy(rows), torch.ones(len(rows)))
        return torch.utils.data.DataLoader(dataset, batch_size=16)

    for name, layers, count in (("dattri TracIn", None, 4), ("dattri TracIn, fc alone", ["model.fc.weight"], 8)):
        task = AttributionTask(loss_func=loss, model=scorer, checkpoints=[scorer.state_dict()])
        attributor = TracInAttributor(
            task=task, weight_list=torch.ones(1), normalized_grad=False, device=str(device), layer_name=layers
        )
        best_of(
            lambda a=attributor, c=count: a.attribute(loader(sample[:c]), loader(tests)), rates, name, count, repeats=1
        )


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected size."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def agreement(rounded: Tensor, exact: Tensor, top: int = 100) -> dict[str, float]:
    """Compare scores (n, N) by rank: the lowest Spearman correlation, and the fewest of the top 100 in common."""
    correlations = [spearmanr(a.numpy(), b.numpy()).statistic for a, b in zip(rounded, exact, strict=True)]
    common_tops = [
        len(set(a.abs().topk(top).indices.tolist()) & set(b.abs().topk(top).indices.tolist()))
        for a, b in zip(rounded, exact, strict=True)
    ]
    return {"lowest_spearman": min(correlations), "fewest_of_the_top_100_in_common": min(common_tops)}


if __name__ == "__main__":
    main()
