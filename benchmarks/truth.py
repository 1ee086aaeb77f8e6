"""Measure how true influence scores are: against models that are really trained without the triples in question.

python benchmarks/truth.py retrain --data data/umls --training-approach kvsall --inverse-triples --workers 2
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conve_tracin.cli import fraction, make_parser, members_of, positive_float, positive_int, run


def add_setup_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data set and how its models are trained."""
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--data", type=Path, required=True, help="folder with train.txt, valid.txt, test.txt and the two mappings"
    )
    group.add_argument("--training-approach", choices=("1vsall", "kvsall"), default="kvsall")
    group.add_argument("--inverse-triples", action="store_true")
    group.add_argument("--num-epochs", type=positive_int, default=60)
    group.add_argument("--batch-size", type=positive_int, default=128)
    group.add_argument("--learning-rate", type=positive_float, default=0.01)
    group.add_argument("--lr-decay", type=positive_float, default=0.95)
    group.add_argument("--label-smoothing", type=fraction, default=0.1)
    group.add_argument("--input-dropout", type=fraction, default=0.2)
    group.add_argument("--feature-map-dropout", type=fraction, default=0.2)
    group.add_argument("--output-dropout", type=fraction, default=0.3)
    group.add_argument("--embedding-height", type=positive_int, default=8)
    group.add_argument("--embedding-width", type=positive_int, default=8)
    group.add_argument("--num-halves", type=positive_int, default=60, help="random halves of the training set")
    group.add_argument("--num-seeds", type=positive_int, default=3, help="models trained on each half")
    group.add_argument(
        "--num-models", type=positive_int, default=3, help="models trained on everything, which the methods see"
    )
    group.add_argument(
        "--cache", type=Path, default=Path("benchmarks/cache"), help="where results of trainings are kept"
    )
    group.add_argument("--workers", type=positive_int, default=1, help="trainings side by side")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    common = argparse.ArgumentParser(add_help=False)
    add_setup_arguments(common)
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("retrain", parents=[common], help="fill the cache: random halves and full models")
    return parser.parse_args(argv)


def setup_of(args: argparse.Namespace):
    """Build the `Setup` that the arguments describe."""
    from truth_lib.setups import Setup

    from conve_tracin.training import TrainingConfig

    return Setup(
        data_dir=args.data,
        config=TrainingConfig(**members_of(TrainingConfig, args)),
        embedding_height=args.embedding_height,
        embedding_width=args.embedding_width,
        dropouts=(args.input_dropout, args.feature_map_dropout, args.output_dropout),
    )


def retrain(args: argparse.Namespace) -> None:
    """Train what the measurements need and the cache lacks."""
    from truth_lib import retraining

    setup = setup_of(args)
    jobs = retraining.full_jobs(setup, args.cache, num_seeds=args.num_models)
    for by_seed in retraining.lds_jobs(setup, args.cache, num_halves=args.num_halves, num_seeds=args.num_seeds):
        jobs += by_seed
    retraining.run_jobs(jobs, workers=args.workers, description=setup.name)


COMMANDS = {"retrain": retrain}


def main() -> None:
    """Run the chosen command."""
    args = parse_args()
    COMMANDS[args.command](args)


if __name__ == "__main__":
    run(main)
