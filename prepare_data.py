#!/usr/bin/env python3
"""Write the input files of training and influence from a PyKEEN dataset, files of triples or a KGX graph."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from conve_tracin import cli
from conve_tracin.errors import InputError
from conve_tracin.files import require_usable_outputs

if TYPE_CHECKING:
    from conve_tracin.data.prepare import Graph

# The keys of conve_tracin.kgx.STYLES, without importing it: --help answers at once.
STYLES = ("keepall", "original", "CD", "CGGD", "CCGGDD", "rCD", "CGGD_alltreat")


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
    source.add_argument("--nodes", metavar="FILE", type=Path, help="nodes.jsonl of a KGX graph, with --edges")
    parser.add_argument("--output-dir", "-o", type=Path, required=True, help="where the files go")
    kgx = parser.add_argument_group("KGX graph")
    kgx.add_argument("--edges", metavar="FILE", type=Path, help="edges.jsonl of the graph that --nodes belongs to")
    kgx.add_argument(
        "--style", choices=STYLES, default="keepall",
        help="which edges are kept, by the categories of their ends (C chemical, G gene, D disease)",
    )  # fmt: skip
    kgx.add_argument(
        "--test-predicate", metavar="PREDICATE",
        help="hold out edges with this predicate only, such as biolink:treats; the fractions are shares of them",
    )  # fmt: skip
    kgx.add_argument("--skip-malformed", action="store_true", help="leave out and count broken lines")
    kgx.add_argument("--skip-unknown", action="store_true", help="leave out and count edges with an end not in --nodes")
    split = parser.add_argument_group("splitting (of a KGX graph, one file, or a dataset without validation triples)")
    split.add_argument("--valid-fraction", type=cli.fraction, default=0.1, help="share of the triples in valid.txt")
    split.add_argument("--test-fraction", type=cli.fraction, default=0.1, help="share of the triples in test.txt")
    split.add_argument("--random-seed", type=cli.non_negative_int, default=42, help="of the choice")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, read, write, and say what was written."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_matching_flags(args, parser)
    require_usable_outputs({}, directory=("--output-dir", args.output_dir))

    from conve_tracin.data.prepare import summary, write_graph

    if args.nodes is not None:
        graph = prepare_kgx(args)
    else:
        graph = read_graph(args)
        write_graph(graph, args.output_dir)
    print(summary(graph, args.output_dir))


def require_matching_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Stop where --nodes lacks --edges, or a flag of KGX graphs is given without one."""
    if args.nodes is not None:
        if args.edges is None:
            parser.error("--nodes goes with --edges")
        return
    for name in ("edges", "style", "test_predicate", "skip_malformed", "skip_unknown"):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} goes with --nodes and --edges")


def prepare_kgx(args: argparse.Namespace) -> "Graph":
    """Read a KGX graph, write its files and print what was kept; raises InputError where a line is wrong."""
    from conve_tracin.data.kgx import describe, read_kgx, write_kgx
    from conve_tracin.data.prepare import require_inputs_kept

    require_inputs_kept(args.output_dir, [args.nodes, args.edges])
    kgx = read_kgx(
        args.nodes,
        args.edges,
        style=args.style,
        fractions={"valid": args.valid_fraction, "test": args.test_fraction},
        test_predicate=args.test_predicate,
        random_seed=args.random_seed,
        skip_malformed=args.skip_malformed,
        skip_unknown=args.skip_unknown,
    )
    write_kgx(kgx, args.output_dir)
    print(describe(kgx.summary))
    return kgx.graph


def read_graph(args: argparse.Namespace) -> "Graph":
    """Read the source that the arguments name; raises InputError where it is malformed."""
    from conve_tracin.data import prepare as preparation

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
