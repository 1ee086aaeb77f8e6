#!/usr/bin/env python3
"""Trace predictions of any checkpoint, native or PyKEEN's, to the training triples behind them (TracIn)."""

import argparse
from pathlib import Path

from conve_tracin import cli
from conve_tracin.settings import MODES, TracInOptions

__getattr__ = cli.lazy_exports({"run_tracin_analysis": "conve_tracin.explain"})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse prints one line and exits with code 2 where it is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.mode != "self" and args.test is None and (args.mode == "single" or args.test_triples is None):
        parser.error(f"--mode {args.mode} needs --test FILE")
    if args.mode == "single" and not args.test_indices:
        parser.error("--mode single needs --test-indices I …")
    return args


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model-path", type=Path, nargs="+", required=True, metavar="CHECKPOINT",
        help="native, converted or PyKEEN's; a directory of a PyKEEN pipeline, or of checkpoint_epoch_N.pt; "
        "the influences of several checkpoints add up (TracInCP)",
    )  # fmt: skip
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    tested = files.add_mutually_exclusive_group()
    tested.add_argument("--test", type=Path, help="test triples; required but in --mode self")
    tested.add_argument(
        "--test-triples", type=Path, metavar="FILE", help="instead of --test: triples of ids, or of labels, a line each"
    )
    cli.add_mapping_arguments(files, required=False)
    cli.add_name_arguments(files)
    files.add_argument(
        "--trust-pickle", action="store_true",
        help="read PyKEEN's trained_model.pkl; unpickling runs code, so only from an origin that you trust",
    )  # fmt: skip
    files.add_argument("--embedding-height", type=cli.positive_int, help="of a ConvE whose file does not tell it")
    files.add_argument("--embedding-width", type=cli.positive_int, help="likewise")
    files.add_argument(
        "--output", "-o", type=Path, required=True, help="JSON file; a directory with --output-per-triple"
    )
    files.add_argument("--output-per-triple", action="store_true", help="write one JSON file for each test triple")
    files.add_argument(
        "--csv-output", type=Path, nargs="?", const=True, metavar="FILE",
        help="write a table, too; without FILE beside --output",
    )  # fmt: skip
    cli.add_report_argument(files)
    add_choice_arguments(parser)
    cli.add_influence_arguments(parser)
    add_engine_arguments(parser)
    return parser


def add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is analysed."""
    choice = parser.add_argument_group("what to analyse")
    choice.add_argument(
        "--mode", choices=MODES, default=TracInOptions.mode,
        help="test: the test triples; single: those of --test-indices; self: rank training triples by self-influence",
    )  # fmt: skip
    choice.add_argument(
        "--test-indices", type=cli.non_negative_int, nargs="+", metavar="I",
        help="places in the test file, counted from 0, for --mode single",
    )  # fmt: skip
    choice.add_argument("--max-test-triples", type=cli.positive_int, metavar="N", help="analyse the first N only")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the same scores are computed; flags without effect are accepted, and the run says so."""
    engine = parser.add_argument_group("engine")
    engine.add_argument("--last-layer-names", nargs="+", metavar="NAME", help="track exactly these parameters")
    engine.add_argument(
        "--use-optimized-tracin", action="store_true",
        help="the same scores by forward-mode passes, in far less time than the reference's backward loop",
    )  # fmt: skip
    _add_switch(engine, on="--use-vectorized-gradients", off="--disable-vectorized-gradients")
    _add_switch(engine, on="--cache-test-gradients", off="--disable-test-gradient-caching")
    for flag in ("--use-torch-compile", "--disable-memory-cleanup"):
        engine.add_argument(flag, action="store_true", help="accepted; see the message")


def _add_switch(group: argparse._ArgumentGroup, *, on: str, off: str) -> None:
    name = on.removeprefix("--").replace("-", "_")
    both = group.add_mutually_exclusive_group()
    both.add_argument(on, dest=name, action="store_true", default=None, help="accepted; see the message")
    both.add_argument(off, dest=name, action="store_false", default=None, help="accepted; see the message")


def main(argv: list[str] | None = None) -> None:
    """Parse, analyse, write."""
    args = parse_args(argv)
    from conve_tracin.parallel import processes, run_on_all_gpus_if_asked

    run_on_all_gpus_if_asked(args)
    from conve_tracin.explain import RUN_TRACIN, explain

    with processes():
        explain(TracInOptions(**cli.members_of(TracInOptions, args)), RUN_TRACIN)


if __name__ == "__main__":
    cli.run(main)
