#!/usr/bin/env python3
"""Write the input files of training and influence from a PyKEEN dataset or from files of triples."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.errors import InputError

if TYPE_CHECKING:
    from conve_tracin.preparation import Graph


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset", metavar="NAME", help="a PyKEEN dataset; umls, nations and kinships need no network"
    )
    source.add_argument(
        "--triples", metavar="PATH", type=Path, nargs="+",
        help="head<TAB>relation<TAB>tail: one file to be split, TRAIN VALID TEST, or a directory that holds "
        "train.txt, valid.txt and test.txt",
    )  # fmt: skip
    parser.add_argument("--output-dir", "-o", type=Path, required=True, help="where the files go")
    split = parser.add_argument_group("splitting (of one file, or of a dataset without validation triples)")
    split.add_argument("--valid-fraction", type=cli.fraction, default=0.1, help="share of the triples in valid.txt")
    split.add_argument("--test-fraction", type=cli.fraction, default=0.1, help="share of the triples in test.txt")
    split.add_argument("--random-seed", type=cli.non_negative_int, default=42, help="of the choice")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, read, write, and say what was written."""
    args = build_parser().parse_args(argv)

    from conve_tracin.preparation import summary, write_graph

    graph = read_graph(args)
    write_graph(graph, args.output_dir)
    print(summary(graph, args.output_dir))


def read_graph(args: argparse.Namespace) -> "Graph":
    """Read the source that the arguments name; raises InputError where it is malformed."""
    from conve_tracin import preparation

    fractions = {"valid": args.valid_fraction, "test": args.test_fraction}
    if args.dataset is not None:
        return preparation.graph_from_dataset(args.dataset, fractions=fractions, random_seed=args.random_seed)
    paths = args.triples
    if len(paths) == 1 and paths[0].is_dir():
        paths = list(preparation.split_files(paths[0]).values())
    preparation.require_inputs_kept(args.output_dir, paths)
    if len(paths) == 3:
        return preparation.graph_from_splits(dict(zip(preparation.SPLITS, paths, strict=True)))
    if len(paths) == 1:
        return preparation.graph_from_file(paths[0], fractions=fractions, random_seed=args.random_seed)
    raise InputError(f"--triples: got {len(paths)} files; give one, or TRAIN VALID TEST")


if __name__ == "__main__":
    cli.run(main)
