"""Measure how true influence scores are: against models that are really trained without the triples in question.

lds: random halves of the training set; remove: the strongest proponents; planted: errors put among the training
triples. Trainings are kept in --cache, so that an interrupted run goes on and a second measurement needs none anew.

Of models that are trained already: reasons: scores against known reasons; paths: the order of the graph's paths against
known reasons; stability: how far models of several seeds agree; mechanism: whether they use the known reasons at all.
Scores are kept in --cache. plant-graph writes a graph whose reasons are known.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conve_tracin.cli import fraction, make_parser, members_of, non_negative_int, positive_float, positive_int, run
from conve_tracin.errors import InputError


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data set, how its models are trained, and where results go."""
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--data", type=Path, required=True, help="folder with train.txt, valid.txt, test.txt and the two mappings"
    )
    group.add_argument("--training-approach", choices=("1vsall", "kvsall"), default="kvsall")
    group.add_argument("--inverse-triples", action="store_true", help="train with inverse triples")
    group.add_argument("--num-epochs", type=positive_int, default=60, help="of each training")
    group.add_argument("--batch-size", type=positive_int, default=128, help="of each training")
    group.add_argument("--learning-rate", type=positive_float, default=0.01, help="of Adam")
    group.add_argument("--lr-decay", type=positive_float, default=0.95, help="factor after each epoch")
    group.add_argument("--loss", choices=("bce", "ce"), default="bce", help="of each training")
    group.add_argument("--query-weights", choices=("equal", "tails"), default="equal", help="of kvsall's queries")
    group.add_argument("--label-smoothing", type=fraction, default=0.1, help="of the loss")
    group.add_argument("--input-dropout", type=fraction, default=0.2, help="of the embeddings")
    group.add_argument("--feature-map-dropout", type=fraction, default=0.2, help="of the convolution")
    group.add_argument("--output-dropout", type=fraction, default=0.3, help="of the query vector")
    group.add_argument("--embedding-height", type=positive_int, default=8, help="height × width is the dimension")
    group.add_argument("--embedding-width", type=positive_int, default=8, help="see --embedding-height")
    group.add_argument("--output-channels", type=positive_int, default=32, help="of the convolution")
    group.add_argument(
        "--entity-sample", type=non_negative_int, default=0, help="entities drawn for each batch; 0: all"
    )
    group = parser.add_argument_group("how it runs")
    group.add_argument("--num-models", type=positive_int, default=3, help="models trained on everything")
    group.add_argument("--cache", type=Path, default=Path("benchmarks/cache"), help="where trainings are kept")
    group.add_argument("--results", type=Path, default=Path("benchmarks/results/truth.json"), help="JSON to add to")
    group.add_argument("--device", default="cpu", help="where models are trained: cpu, cuda, cuda:1, …")
    group.add_argument("--workers", type=positive_int, default=1, help="trainings side by side, one thread each")


def add_lds_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sizes of the linear datamodeling score."""
    parser.add_argument("--num-halves", type=positive_int, default=60, help="random parts of the training set")
    parser.add_argument("--share-kept", type=fraction, default=0.5, help="of the training triples in each part")
    parser.add_argument("--num-seeds", type=positive_int, default=3, help="models trained on each part")
    parser.add_argument("--num-test", type=positive_int, default=100, help="test triples")
    parser.add_argument("--methods", nargs="+", help="names of the methods that are measured; all without")
    parser.add_argument(
        "--skip-test", type=non_negative_int, default=0, help="leave out so many, on which a choice was made"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    add_setup_arguments(common)
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("retrain", "fill the cache for lds"), ("lds", "linear datamodeling score of every method")):
        add_lds_arguments(commands.add_parser(name, parents=[common], help=text))
    remove = commands.add_parser("remove", parents=[common], help="remove the strongest proponents and retrain")
    remove.add_argument("--num-test", type=positive_int, default=60, help="test triples that the model ranks first")
    remove.add_argument("--facts", type=Path, help="these test triples instead: head, relation, tail by tabs")
    remove.add_argument("--top-k", type=positive_int, nargs="+", default=[10], help="proponents removed of each")
    remove.add_argument("--removals", nargs="+", help="names of what is removed; all without")
    remove.add_argument("--num-seeds", type=positive_int, default=4, help="retrainings")
    planted = commands.add_parser("planted", parents=[common], help="find planted errors")
    planted.add_argument("--share", type=fraction, default=0.05, help="of the training triples")
    planted.add_argument("--num-draws", type=positive_int, default=3, help="corrupted training sets")
    for name, text in (
        ("reasons", "scores of trained models against known reasons"),
        ("paths", "ranked paths of the graph against known reasons"),
        ("stability", "how far trained models agree about a prediction"),
    ):
        add_exam_arguments(commands.add_parser(name, help=text))
    mechanism = commands.add_parser("mechanism", help="train again without the known reasons: are they used?")
    add_exam_arguments(mechanism)
    mechanism.add_argument("--num-seeds", type=positive_int, default=3, help="trainings of each kind")
    mechanism.add_argument("--removals", nargs="+", help="names of what is removed; all without")
    mechanism.add_argument("--strongest-by", default="gauss-newton", help="the method whose strongest are removed")
    mechanism.add_argument("--device", default="cpu", help="where models are trained: cpu, cuda, cuda:1, …")
    mechanism.add_argument("--workers", type=positive_int, default=1, help="trainings side by side, one thread each")
    graph = commands.add_parser("plant-graph", help="write a graph whose reasons are known, and the reasons")
    graph.add_argument("--seed", type=non_negative_int, default=0, help="of the drawing")
    graph.add_argument(
        "--genes-regulated",
        type=non_negative_int,
        default=0,
        help="by each gene, which acts through them: reasons of three triples",
    )
    graph.add_argument("--output-dir", type=Path, required=True, help="folder for the graph and reasons.jsonl.gz")
    return parser.parse_args(argv)


def add_exam_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare trained models and the predictions that they are examined on."""
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train.txt, valid.txt, test.txt and the two mappings"
    )
    parser.add_argument("--reasons", type=Path, required=True, help="JSON lines, plain or .gz, with known reasons")
    parser.add_argument("--model-path", type=Path, nargs="+", required=True, help="native checkpoints of several seeds")
    parser.add_argument("--max-rank", type=positive_float, default=10.0, help="of predictions, by every model")
    parser.add_argument("--test-alone", action="store_true", help="only predictions that are test triples")
    parser.add_argument(
        "--whole-alone", action="store_true", help="only predictions with an explanation that is wholly in training"
    )
    parser.add_argument(
        "--through", default="", help="of paths: how labels begin that one measure's paths lead through"
    )
    parser.add_argument("--methods", nargs="+", help="names of the methods that are examined; all without")
    parser.add_argument("--name", help="of the exam in the results; the name of the data folder without")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"), help="where scores are kept")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/exams.json"), help="JSON to add to")


def examine(args: argparse.Namespace) -> None:
    """Examine trained models: `reasons`, `paths` or `stability`."""
    from truth_lib.exams import reasons_exam, stability_exam
    from truth_lib.path_orders import paths_exam, scores_in_path_order
    from truth_lib.trained import BOTH_SIDES, GAUSS_NEWTON, HUNDREDFOLD, LABELS_ALONE, METHODS, require_methods

    methods = args.methods or list(METHODS)
    require_methods(methods)
    exam = read_exam(args)
    if args.command == "paths":
        result = paths_exam(exam, args.through, methods)
    elif args.command == "stability":
        transform = partial(scores_in_path_order, exam)
        result = stability_exam(
            exam, methods, transform=transform, transformed=(GAUSS_NEWTON, HUNDREDFOLD, LABELS_ALONE, BOTH_SIDES)
        )
    else:
        result = reasons_exam(exam, methods)
    record_exam(args, exam, result)


def read_exam(args: argparse.Namespace) -> Any:
    """Read the predictions and models of an exam."""
    from truth_lib.exams import load_exam

    return load_exam(
        data=args.data,
        reasons=args.reasons,
        model_paths=args.model_path,
        max_rank=args.max_rank,
        cache=args.cache,
        test_alone=args.test_alone,
        whole_alone=args.whole_alone,
    )


def record_exam(args: argparse.Namespace, exam: Any, result: dict[str, Any]) -> None:
    """Add the result of an exam to the JSON file, and write the Markdown page beside it."""
    from common import machine
    from truth_lib import exam_tables, tables

    content = tables.merge_result(
        args.results,
        [args.command, args.name or args.data.resolve().name],
        {"results": result, **exam.describe(), "max_rank": args.max_rank, "machine": machine()},
    )
    exam_tables.write_page(args.results.with_suffix(".md"), content)


def mechanism(args: argparse.Namespace) -> None:
    """Train again without the known reasons, and without others, and see what the predictions lose."""
    from truth_lib import mechanism, retraining
    from truth_lib.trained import require_methods

    from conve_tracin.compute.device import choose_device

    require_methods([args.strongest_by])
    names = [mechanism.NOTHING, *(name for name in args.removals or mechanism.REMOVALS if name != mechanism.NOTHING)]
    require_names("--removals", names, mechanism.REMOVALS)
    exam = read_exam(args)
    setup = mechanism.setup_of(exam.models[0], args.data, choose_device(args.device))
    retraining.require_same_setup(setup, args.cache)
    influences = exam.scores(args.strongest_by)[0]
    removed = {
        name: [mechanism.removed_triples(exam, influences, name, seed=seed) for seed in range(args.num_seeds)]
        for name in names
    }
    jobs = mechanism.mechanism_jobs(setup, args.cache, exam, removed)
    # All kinds of a seed before the next seed, so that an interrupted run has whole comparisons.
    in_order = itertools.chain(*zip(*jobs.values(), strict=True))
    retraining.run_jobs(in_order, workers=args.workers, description=f"{setup.name}, mechanism")
    record_exam(args, exam, mechanism.summarize_removals(jobs))


def require_names(option: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise InputError where an option names what there is not."""
    for name in names:
        if name not in known:
            raise InputError(f"{option}: there is no {name!r}; give one of: {'; '.join(known)}")


def plant_graph(args: argparse.Namespace) -> None:
    """Write a planted graph and its reasons."""
    from truth_lib.planted_graph import PlantedGraphConfig, plant_graph

    graph = plant_graph(args.seed, PlantedGraphConfig(genes_regulated=args.genes_regulated))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    graph.write(args.output_dir)


def setup_of(args: argparse.Namespace) -> Any:
    """Build the `Setup` that the arguments describe, and see that the cache fits it."""
    from truth_lib.retraining import require_same_setup
    from truth_lib.setups import Setup

    from conve_tracin.compute.device import choose_device
    from conve_tracin.settings import TrainingConfig

    setup = Setup(
        data_dir=args.data,
        config=TrainingConfig(**members_of(TrainingConfig, args)),
        embedding_height=args.embedding_height,
        embedding_width=args.embedding_width,
        dropouts=(args.input_dropout, args.feature_map_dropout, args.output_dropout),
        more_sizes={} if args.output_channels == 32 else {"output_channels": args.output_channels},
        device=choose_device(args.device),
    )
    require_same_setup(setup, args.cache)
    return setup


def record(args: argparse.Namespace, setup: Any, result: dict[str, Any], *, name: str | None = None) -> None:
    """Add a result to the JSON file, under the setup's name or another, and write the Markdown page beside it anew."""
    from common import machine
    from truth_lib import tables

    command = shlex.join(["python", "benchmarks/truth.py", *sys.argv[1:]])
    result |= {"command": command, "machine": machine()}
    content = tables.merge_result(args.results, [args.command, name or setup.name], result)
    tables.write_report(args.results.with_suffix(".md"), content)


def lds_trainings(args: argparse.Namespace, setup: Any) -> tuple[list[Any], list[list[Any]]]:
    """Train what the linear datamodeling score needs: jobs on everything, and jobs on halves by seed."""
    from truth_lib import retraining

    full = retraining.full_jobs(setup, args.cache, num_seeds=args.num_models)
    halves = retraining.lds_jobs(
        setup, args.cache, num_halves=args.num_halves, num_seeds=args.num_seeds, share=args.share_kept
    )
    retraining.run_jobs([*full, *itertools.chain(*halves)], workers=args.workers, description=setup.name)
    return full, halves


def retrain(args: argparse.Namespace) -> None:
    """Train what `lds` needs and the cache lacks."""
    lds_trainings(args, setup_of(args))


def lds(args: argparse.Namespace) -> None:
    """Measure the linear datamodeling score of every method, for the score as a tail and for that of both sides."""
    import numpy as np
    from tqdm import tqdm
    from truth_lib import retraining
    from truth_lib.lds import agreement, sums_of_parts
    from truth_lib.methods import BASELINES, GAUSS_NEWTON, RECOMMENDED, TRACIN

    if not args.share_kept:
        raise InputError("--share-kept is 0; give a share above 0")
    chosen_methods = TRACIN | GAUSS_NEWTON
    require_names("--methods", args.methods or (), chosen_methods)
    if args.methods:
        chosen_methods = {name: chosen_methods[name] for name in dict.fromkeys([*args.methods, RECOMMENDED])}
    setup = setup_of(args)
    full, halves = lds_trainings(args, setup)
    data = setup.load()
    shuffled = np.random.default_rng(7).permutation(len(data.test))
    chosen = np.sort(shuffled[args.skip_test : args.skip_test + args.num_test])
    test = data.test[chosen]
    kept = np.stack([job.kept for job in halves[0]])  # (M, N)
    models = [retraining.read_model(job) for job in full]

    predicted: dict[str, np.ndarray] = {}
    for name, method in tqdm([*BASELINES.items(), *chosen_methods.items()], desc="methods"):
        sums = sums_of_parts(method(models[0], setup, test, data.train), kept)  # (M, n)
        predicted[name] = sums
        if name == RECOMMENDED:
            for count, model in enumerate(models[1:], start=2):
                sums = sums + sums_of_parts(method(model, setup, test, data.train), kept)
                predicted[f"{RECOMMENDED}, {count} models summed"] = sums

    def agreement_with(read: Callable[[Iterable[Any]], np.ndarray]) -> dict[str, Any]:
        measured = np.stack([read(jobs)[:, chosen] for jobs in halves])  # (seeds, M, n)
        return agreement(predicted, measured, rules=BASELINES, recommended=RECOMMENDED)

    sides = {"both_sides": agreement_with(retraining.read_scores_of_sides)} if args.inverse_triples else {}
    record(
        args,
        setup,
        {
            **agreement_with(retraining.read_scores),
            **sides,
            "halves": args.num_halves,
            "share_kept": args.share_kept,
            "seeds": args.num_seeds,
            "test_triples": len(test),
            "models": len(models),
            "retraining_minutes": sum(retraining.read_seconds(jobs) for jobs in halves) / 60,
        },
        name=setup.name if args.share_kept == 0.5 else f"{setup.name}, {args.share_kept:g} kept",
    )


def remove(args: argparse.Namespace) -> None:
    """Remove the strongest proponents by every method, and controls, and retrain."""
    from truth_lib import removal, retraining
    from truth_lib.setups import rank_tails

    names = args.removals or [name for name in removal.REMOVALS if name != removal.SUMMED or args.num_models > 1]
    require_names("--removals", names, removal.REMOVALS)
    setup = setup_of(args)
    data = setup.load()
    full = retraining.full_jobs(setup, args.cache, num_seeds=args.num_models)
    retraining.run_jobs(full, workers=args.workers, description=f"{setup.name}, everything")
    models = [retraining.read_model(job) for job in full]
    if args.facts:
        chosen = removal.triples_of_facts(args.facts, setup, data.test)
    else:
        chosen = removal.triples_ranked_first(rank_tails(models[0], setup, data), args.num_test)
    test = data.test[chosen]
    influences = removal.influences_of(names, models, setup, test, data.train)

    jobs = {}
    for top_k, name in itertools.product(args.top_k, names):
        draws = [{"top_k": top_k, "seed": seed} for seed in range(args.num_seeds)]
        marked = [removal.removed_triples(name, influences, test, data.train, **draw) for draw in draws]
        jobs[top_k, name] = removal.removal_jobs(setup, args.cache, marked)
    # All removals with a seed before the next seed, so that an interrupted run has whole comparisons.
    in_order = itertools.chain(*zip(*jobs.values(), strict=True))
    retraining.run_jobs(in_order, workers=args.workers, description=f"{setup.name}, removed")
    first = chosen[retraining.read_ranks(full[:1])[0, chosen] == 1]
    by_top_k = {
        str(top_k): {name: removal.summarize_removal(jobs[top_k, name], chosen, first) for name in names}
        for top_k in args.top_k
    }
    for top_k in args.top_k:
        removal.add_falls(by_top_k[str(top_k)], {name: jobs[top_k, name] for name in names}, chosen)
    before = removal.summarize_removal(full, chosen, first)
    result = {"by_top_k": by_top_k, "before": before, "test_triples": len(test), "seeds": args.num_seeds}
    name = f"{setup.name}, {args.facts.stem}" if args.facts else setup.name
    result = removal.with_earlier(args.results, name, result | {"facts": args.facts.name if args.facts else None})
    record(args, setup, result, name=name)


def planted(args: argparse.Namespace) -> None:
    """Plant errors in the training set, train, and look for them with every method."""
    import numpy as np
    from tqdm import tqdm
    from truth_lib import planted as errors
    from truth_lib import retraining

    setup = setup_of(args)
    data = setup.load()
    draws = [errors.plant_errors(data, args.share, seed=seed) for seed in range(args.num_draws)]
    jobs = errors.planted_jobs(setup, args.cache, [triples for triples, _ in draws])
    retraining.run_jobs(jobs, workers=args.workers, description=f"{setup.name}, planted")
    areas: dict[str, list[float]] = {}
    for job, (triples, is_planted) in zip(tqdm(jobs, desc="methods"), draws, strict=True):
        for name, suspicion in errors.suspicions(retraining.read_model(job), setup, data, triples).items():
            areas.setdefault(name, []).append(errors.area_under_roc(suspicion, is_planted))
    auc = {name: float(np.mean(values)) for name, values in areas.items()}
    record(args, setup, {"auc": auc, "share": args.share, "draws": args.num_draws})


COMMANDS = {
    "retrain": retrain,
    "lds": lds,
    "remove": remove,
    "planted": planted,
    "reasons": examine,
    "paths": examine,
    "stability": examine,
    "mechanism": mechanism,
    "plant-graph": plant_graph,
}


def main() -> None:
    """Run the chosen command."""
    args = parse_args()
    COMMANDS[args.command](args)


if __name__ == "__main__":
    run(main)
