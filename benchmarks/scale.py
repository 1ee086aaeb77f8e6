#!/usr/bin/env python3
"""How the time of influence grows with training triples, test triples and dimension, up to 16 million triples.

    python benchmarks/scale.py --triples 16000000 --embedding-size 8x4 --test-triples 1
    python benchmarks/scale.py --growth growth.svg
    python benchmarks/scale.py --commands FOLDER --loop 20 --many 100 --against OTHER
    python benchmarks/scale.py --forecast FOLDER [FOLDER …]

The first form measures one size on a synthetic graph of 400,000 entities and 300 relations, and with --loading also
the time to read its files. The second measures many small sizes and draws them. The third times commands as a user
calls them, on files that it writes into the folder: a first call, a second one, a loop, and one call for many test
triples; --against takes turns with another version of the project. The fourth estimates what training on such folders
takes with the settings that are advised for their size. The last line is JSON.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import commands, common
from conve_tracin.commands import advised_training
from conve_tracin.compute.device import set_tf32
from conve_tracin.influence.analyzers import TracInAnalyzerPyTorch
from conve_tracin.influence.gauss_newton import GaussNewton
from conve_tracin.influence.trace import make_trace
from conve_tracin.model.conve import ConvE
from conve_tracin.settings import DEFAULT_BATCH_SIZE
from conve_tracin.training.forecast import forecast_training, sizes_of

ENTITIES, RELATIONS = 400_000, 300
# Distinct (head, relation) pairs for each triple, about as in FB15k-237.
PAIR_SHARE = 0.34
# What the method was measured on (docs/tracin.md).
ADVISED = {"training_approach": "kvsall", "loss": "ce", "query_weights": "tails", "inverse_triples": True}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=16_000_000)
    parser.add_argument("--entities", type=int, default=ENTITIES, help="with --commands: of a synthetic graph")
    parser.add_argument("--test-triples", type=int, default=1)
    parser.add_argument("--embedding-size", default="8x4", help="height x width of an embedding")
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE)
    parser.add_argument("--use-mixed-precision", action="store_true")
    parser.add_argument("--use-tf32", action="store_true")
    parser.add_argument("--method", choices=("tracin", "gauss-newton"), default="tracin")
    parser.add_argument("--loading", action="store_true", help="also write and read the files")
    parser.add_argument("--growth", type=Path, metavar="SVG", help="draw how the time grows, instead")
    parser.add_argument("--commands", type=Path, metavar="FOLDER", help="time whole commands on files in it, instead")
    parser.add_argument("--forecast", type=Path, nargs="+", metavar="FOLDER", help="estimate training on such folders")
    parser.add_argument("--data", type=Path, help="with --commands: a graph as published, instead of a synthetic one")
    parser.add_argument("--softmax", action="store_true", help="with --commands: a model of the advised training")
    parser.add_argument("--one-relation", action="store_true", help="with --commands: test triples as candidates are")
    parser.add_argument("--loop", type=int, default=20, help="with --commands: calls after the second one")
    parser.add_argument("--many", type=int, default=0, help="with --commands: test triples of one call")
    parser.add_argument("--against", type=Path, metavar="DIR", help="with --commands: another version's root")
    parser.add_argument("--loop-against", type=int, help="fewer calls of that version, if each takes minutes")
    parser.add_argument("--indexed", action="store_true", help="with --commands: keep the index of an earlier run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    set_tf32(args.use_tf32)
    measure = measure_one
    for given, other in ((args.forecast, forecast), (args.commands, time_commands), (args.growth, measure_growth)):
        if given:
            measure = other
    common.print_json({"machine": common.machine(), **measure(args)}, args.output)


def measure_one(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one size, with the time to rank the influences."""
    height, width = (int(side) for side in args.embedding_size.split("x"))
    triples = draw(args.triples)
    result = {"benchmark": "scale", "triples": len(triples), "entities": ENTITIES, "relations": RELATIONS}
    if args.loading:
        result |= measure_loading(triples)
    seconds = time_influence(triples, height, width, args.test_triples, args)
    return result | {
        "embedding_dim": height * width,
        "test_triples": args.test_triples,
        "method": args.method,
        "device": args.device,
        "mixed_precision": args.use_mixed_precision,
        "tf32": args.use_tf32,
        "influence_seconds": round(seconds, 1),
        "peak_memory_gb": round(common.peak_memory_gb(), 2),
    }


def time_commands(args: argparse.Namespace) -> dict[str, Any]:
    """Write a graph and a model, and time commands on them."""
    height, width = (int(side) for side in args.embedding_size.split("x"))
    if args.data is None:
        graph = (draw(args.triples, args.entities), args.entities, RELATIONS)
    else:
        graph = common.read_split(args.data)
    training = ADVISED if args.softmax else {"training_approach": "kvsall"}
    commands.write_inputs(
        args.commands, *graph, size=(height, width), training=training, has_one_relation=args.one_relation
    )
    measured = commands.measure_commands(
        args.commands,
        loop=args.loop,
        many=args.many,
        against=args.against,
        loop_against=args.loop if args.loop_against is None else args.loop_against,
        is_indexed=args.indexed,
    )
    return {
        "benchmark": "scale-commands",
        "data": "synthetic" if args.data is None else args.data.name,
        "triples": len(graph[0]),
        "entities": graph[1],
        "relations": graph[2],
        "embedding_dim": height * width,
        "test_triples": "of one relation" if args.one_relation else "random",
        "training": training,
        **measured,
    }


def forecast(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate what training takes on the graphs of some folders, as the pipeline does."""
    found = {}
    for folder in args.forecast:
        data = commands.inputs_in(folder)
        counts = [sum(1 for _ in data[name].open("rb")) for name in ("train", "entity_to_id")]
        settings = advised_training(counts[0], num_entities=counts[1])
        estimate = forecast_training(sizes_of(data, settings), settings)
        found[str(counts[0])] = {
            "entities": counts[1],
            "hours": round(estimate.seconds / 3600, 2),
            "peak_memory_gb": round(estimate.gigabytes, 2),
            "settings": settings,
        }
    return {"benchmark": "scale-forecast", "training": found}


def draw(count: int, entities: int = ENTITIES) -> np.ndarray:
    """Draw a synthetic graph of `count` triples (N, 3)."""
    return common.synthetic_triples(
        triples=count, entities=entities, relations=RELATIONS, pairs=int(count * PAIR_SHARE), seed=0
    )


def time_influence(triples: np.ndarray, height: int, width: int, tests: int, args: argparse.Namespace) -> float:
    """Return the seconds to compute and rank the influences on some test triples."""
    torch.manual_seed(0)
    model = ConvE(
        num_entities=ENTITIES,
        num_relations=RELATIONS,
        embedding_dim=height * width,
        embedding_height=height,
        embedding_width=width,
    ).to(args.device)
    if args.method == "tracin":
        method = TracInAnalyzerPyTorch(model, use_mixed_precision=args.use_mixed_precision).method
    else:
        method = GaussNewton(model, training_approach="kvsall")

    def work() -> None:
        products = method.products(
            triples[:tests],
            triples,
            batch_size=args.batch_size,
            progress=f"d = {height * width}, {tests} test triples",
        )
        for test_triple, scores in zip(triples[:tests], products, strict=True):
            make_trace(test_triple, scores, triples, top_k=100)

    return common.seconds(work)[0]


def measure_loading(triples: np.ndarray) -> dict[str, float]:
    """Write the graph as files with labels, and time reading them."""
    from conve_tracin.data.triples import read_triples
    from conve_tracin.data.vocabulary import read_vocabulary

    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("train.txt", "entities.tsv", "relations.tsv")}
        entity_labels = np.array([f"CURIE:{number:07d}" for number in range(ENTITIES)])
        relation_labels = np.array([f"predicate:{number}" for number in range(RELATIONS)])
        for name, labels in (("entities.tsv", entity_labels), ("relations.tsv", relation_labels)):
            paths[name].write_text("".join(f"{label}\t{place}\n" for place, label in enumerate(labels)))
        with paths["train.txt"].open("w") as file:
            for block in np.array_split(triples, max(1, len(triples) // 500_000)):
                heads, relations, tails = entity_labels[block[:, 0]], relation_labels[block[:, 1]], block[:, 2]
                lines = zip(heads.tolist(), relations.tolist(), entity_labels[tails].tolist(), strict=True)
                file.writelines("\t".join(line) + "\n" for line in lines)

        def read() -> np.ndarray:
            entities = read_vocabulary(paths["entities.tsv"], "entity")
            return read_triples(paths["train.txt"], entities, read_vocabulary(paths["relations.tsv"], "relation"))

        before = common.peak_memory_gb()
        seconds, ids = common.seconds(read)
        if not np.array_equal(ids, triples):
            raise AssertionError("the files were read wrongly")
        return {"loading_seconds": round(seconds, 1), "peak_memory_gb_before_loading": round(before, 2)}


def measure_growth(args: argparse.Namespace) -> dict[str, Any]:
    """Measure many sizes and draw them."""
    # The first run of a process also loads libraries.
    time_influence(draw(10_000), 8, 4, 1, args)
    base = {"triples": 200_000, "tests": 1, "size": (8, 4)}
    series = {
        "training triples (d = 32, 1 test triple)": [
            (count, base | {"triples": count}) for count in (100_000, 200_000, 400_000, 800_000, 1_600_000)
        ],
        "test triples (d = 32, 200,000 training triples)": [
            (tests, base | {"tests": tests}) for tests in (1, 2, 4, 8, 16, 32)
        ],
        "dimension (1 test triple, 200,000 training triples)": [
            (height * width, base | {"size": (height, width)})
            for height, width in ((8, 4), (8, 8), (10, 10), (10, 20), (16, 20))
        ],
    }
    measured = {
        name: [
            (value, time_influence(draw(size["triples"]), *size["size"], size["tests"], args)) for value, size in points
        ]
        for name, points in series.items()
    }
    draw_growth(measured, args.growth)
    return {"benchmark": "scale-growth", "seconds": measured}


def draw_growth(measured: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw one panel for each quantity that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(measured), figsize=(12, 3.6), constrained_layout=True)
    for panel, (name, points) in zip(panels, measured.items(), strict=True):
        panel.plot(*zip(*points, strict=True), marker="o", color="#2a6f97")
        panel.set_xlabel(name, fontsize=8)
        panel.set_ylabel("seconds")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Creator": None, "Date": None, "Format": None, "Type": None})


if __name__ == "__main__":
    main()
