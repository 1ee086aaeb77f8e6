#!/usr/bin/env python3
"""How far a sample of the entities changes what Gauss–Newton lists for hubs.

    python benchmarks/hubs.py --data data/fb15k-237 --model-path best_model.pt

On graphs of many entities, what a hub's rivals gain is estimated from its queries' known tails and a sample of the
others. Here a graph that is small enough for all entities gets a sample of the same share, and the strongest
training triples are compared with and without it, all else alike. The last line is JSON, as in --results.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from conve_tracin.checkpoint.native import load_checkpoint, take_model  # noqa: E402
from conve_tracin.data.triples import read_triples  # noqa: E402
from conve_tracin.data.vocabulary import read_vocabulary  # noqa: E402
from conve_tracin.influence.gauss_newton import GaussNewton  # noqa: E402

SAMPLED_SHARE = 1 / 12
TOP = (10, 100)
OF_TRAINING = ("training_approach", "loss", "query_weights", "inverse_triples")


def main() -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare_data.py has written")
    parser.add_argument("--model-path", type=Path, required=True, help="native checkpoint, of cross-entropy")
    parser.add_argument("--num-test", type=int, default=12, help="test triples, each of another hub")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "hubs.json")
    args = parser.parse_args()
    result = {"machine": common.machine(), "data": args.data.name, **measure(args)}
    common.print_json(result, args.results)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Score with and without the sample, and compare."""
    entities, relations = (read_vocabulary(args.data / f"{kind}_to_id.tsv", kind) for kind in ("entity", "relation"))
    train, test = (read_triples(args.data / f"{name}.txt", entities, relations) for name in ("train", "test"))
    test, degrees = of_hubs(train, test, len(entities), args.num_test)
    checkpoint = load_checkpoint(args.model_path)
    trained = {name: checkpoint["training_config"][name] for name in OF_TRAINING}
    model = take_model(checkpoint)

    def score(max_exact_tail_queries: int) -> np.ndarray:
        analyzer = GaussNewton(model, **trained)
        # The curvature's own samples are the same in both.
        sampled = {"max_entities": int(len(entities) * SAMPLED_SHARE), "max_exact_tail_queries": max_exact_tail_queries}
        analyzer.method = replace(analyzer.method, curvature=replace(analyzer.method.curvature, **sampled))
        return analyzer.products(test, train).numpy()

    scores = score(len(train)), score(0)
    return {"degrees": degrees.tolist(), "sampled_share": SAMPLED_SHARE, "overlap": overlaps(*scores)}


def of_hubs(train: np.ndarray, test: np.ndarray, num_entities: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `count` test triples, each of another entity with as many training triples as can be: those, degrees."""
    of_tails, of_heads = (np.bincount(train[:, column], minlength=num_entities) for column in (2, 0))
    ends = np.where(of_tails[test[:, 2]] >= of_heads[test[:, 0]], test[:, 2], test[:, 0])
    degrees = np.maximum(of_tails[test[:, 2]], of_heads[test[:, 0]])
    order = np.argsort(-degrees, kind="stable")
    _, first = np.unique(ends[order], return_index=True)
    chosen = order[np.sort(first)[:count]]
    return test[chosen], degrees[chosen]


def overlaps(exact: np.ndarray, sampled: np.ndarray) -> dict[str, dict[str, float]]:
    """Compare the strongest of each row of scores (n, N): the share that is the same, its mean and least."""
    found = {}
    for top in TOP:
        strongest = [np.argpartition(-scores, top, axis=1)[:, :top] for scores in (exact, sampled)]
        shares = [len(np.intersect1d(*pair)) / top for pair in zip(*strongest, strict=True)]
        found[str(top)] = {"mean": float(np.mean(shares)), "least": float(np.min(shares))}
    return found


if __name__ == "__main__":
    main()
