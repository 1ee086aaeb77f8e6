"""Measure what verification tells: a prediction that rests on few facts from one that rests on none in particular.

The graph is planted (`truth_lib/planted_graph.py`): a drug treats a disease through the one gene that it targets.
Beside that, most drugs have one side effect in common, so that predicting it for another drug rests on no fact alone.
The model is trained once, both predictions are explained once, and verified several times with other seeds.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conve_tracin.cli import make_parser, positive_int, run

COMMON_EFFECT = "side_effect_of_most"
SHARE_WITH_COMMON_EFFECT = 0.7


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=positive_int, default=5, help="verifications, each with other seeds")
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each kind in a verification")
    parser.add_argument("--remove", type=positive_int, default=3, help="strongest proponents to leave out")
    parser.add_argument("--drugs", type=positive_int, default=150, help="of the planted graph")
    parser.add_argument("--num-epochs", type=positive_int, default=80, help="of the explained model")
    parser.add_argument("--num-workers", type=positive_int, help="trainings at a time")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache/verification"), help="where files go")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results/verification.json"), help="JSON to write"
    )
    return parser.parse_args(argv)


def write_graph(folder: Path, *, drugs: int) -> dict[str, list[tuple[str, str, str]]]:
    """Write the files of a planted graph with a common side effect.

    Returns held-out triples: those with one reason, and those of the common side effect.
    """
    import numpy as np
    from truth_lib.planted_graph import SIDE_EFFECT, TREATS, PlantedGraphConfig, plant_graph

    config = PlantedGraphConfig(drugs=drugs, genes=12, diseases=20, side_effects=8, hub_share=0.2)
    graph = plant_graph(0, config)
    generator = np.random.default_rng(0)
    of_drugs = sorted({head for head, relation, _ in graph.train if relation == TREATS})
    has_effect = generator.random(len(of_drugs)) < SHARE_WITH_COMMON_EFFECT
    common = [(drug, SIDE_EFFECT, COMMON_EFFECT) for drug, has in zip(of_drugs, has_effect, strict=True) if has]
    graph.train.extend(common[5:])
    graph.test.extend(common[:5])
    graph.write(folder)
    return {
        "few": [triple for triple in graph.test if len(graph.reasons.get(triple, ())) == 1],
        "none": common[:5],
    }


def train_model(folder: Path, *, num_epochs: int) -> Path:
    """Train the model to be explained on the files of `write_graph`; return its checkpoint."""
    from truth_lib.setups import Setup

    from conve_tracin.settings import TrainingConfig
    from conve_tracin.training.run import train

    config = TrainingConfig(
        num_epochs=num_epochs, batch_size=64, learning_rate=0.005, loss="ce", training_approach="kvsall",
        query_weights="tails", inverse_triples=True, eval_frequency=5, checkpoint_frequency=num_epochs,
    )  # fmt: skip
    sizes = {"embedding_dim": 32, "embedding_height": 4, "embedding_width": 8, "output_channels": 8}
    path = folder / "model" / "best_model.pt"
    if not path.is_file():
        data = Setup(data_dir=folder, config=config).load()
        train(data, config, model_sizes=sizes, output_dir=folder / "model")
    return path


def explain(folder: Path, model: Path, held_out: dict[str, list[tuple[str, str, str]]]) -> dict[str, Path]:
    """Explain the first triple of each kind that the model ranks first; return the JSON of each."""
    from conve_tracin.errors import InputError
    from conve_tracin.explanation.explain import run_tracin_analysis

    found = {}
    for kind, triples in held_out.items():
        for triple in triples:
            path = folder / f"{kind}.json"
            content = run_tracin_analysis(
                model_path=model, train=folder / "train.txt", test_triple=triple, output=path, top_k=50, paths=0,
                method="gauss-newton", device="cpu", known=[folder / "valid.txt", folder / "test.txt"],
                **mappings_of(folder),
            )  # fmt: skip
            if content["results"][0]["prediction"]["rank"] == 1:
                found[kind] = path
                break
        else:
            raise InputError(f"{folder}: the model ranks no triple of the kind {kind!r} first; train for more epochs")
    return found


def mappings_of(folder: Path) -> dict[str, Path]:
    """Return the mappings, as keywords."""
    return {"entity_to_id": folder / "entity_to_id.tsv", "relation_to_id": folder / "relation_to_id.tsv"}


def main() -> None:
    """Make the graph, train, explain, verify."""
    args = parse_args()
    from common import machine

    from conve_tracin.files import write_json
    from conve_tracin.settings import VerificationOptions
    from conve_tracin.verification.verify import verify

    folder = args.cache / f"drugs_{args.drugs}"
    held_out = write_graph(folder, drugs=args.drugs)
    model = train_model(folder, num_epochs=args.num_epochs)
    influences = explain(folder, model, held_out)
    runs = []
    for number in range(args.runs):
        content = verify(
            VerificationOptions(
                influences=list(influences.values()), model_path=model, train=folder / "train.txt",
                known=[folder / "valid.txt", folder / "test.txt"], output=folder / f"verified_{number}.json",
                report=folder / f"verified_{number}.html", remove=args.remove, seeds=args.seeds,
                seed=1000 * (number + 1), num_workers=args.num_workers, device="cpu", **mappings_of(folder),
            )
        )  # fmt: skip
        runs.append(dict(zip(influences, content["results"], strict=True)))
    result = {"runs": [{kind: summary_of(one) for kind, one in each.items()} for each in runs], **counts_of(runs)}
    result |= {"command": shlex.join(["python", "benchmarks/verification.py", *sys.argv[1:]]), "machine": machine()}
    earlier = json.loads(args.results.read_text(encoding="utf-8")) if args.results.is_file() else {}
    write_json(args.results, earlier | result)
    print(json.dumps(result))


def summary_of(result: dict) -> dict:
    """Pick the figures of one prediction in one run."""
    kinds = ("everything", "without_proponents", "without_others")
    names = ("test_triple", "beyond_seeds", "control_beyond_seeds")
    return {name: result[name] for name in names} | {
        kind: {"ranks": result[kind]["ranks"], "leads": result[kind]["leads"]} for kind in kinds
    }


def counts_of(runs: list[dict]) -> dict:
    """Count the runs in which each prediction, or its control, moves beyond what seeds change."""
    return {
        f"{kind}, {name}": sum(bool(each[kind][name]) for each in runs)
        for kind in runs[0]
        for name in ("beyond_seeds", "control_beyond_seeds")
    }


if __name__ == "__main__":
    run(main)
