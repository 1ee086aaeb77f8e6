#!/usr/bin/env python3
"""Trace predictions of a native ConvE checkpoint to the training triples behind them (TracIn)."""

import argparse
from pathlib import Path
from typing import Any

from conve_tracin import cli, settings
from conve_tracin.settings import NativeEngine, TracInOptions

__getattr__ = cli.lazy_exports({"TracInAnalyzerPyTorch": "conve_tracin.influence.analyzers"})


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.group("files")
    files.add_argument(
        "--model-path", type=Path, nargs="+", required=True, metavar="CHECKPOINT",
        help="checkpoints of train_pytorch.py, or their directory; the influences of several add up (TracInCP)",
    )  # fmt: skip
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    cli.add_mapping_arguments(files)
    cli.add_name_arguments(files)
    wanted = files.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--test-triple", nargs=3, metavar=("H", "R", "T"),
        help="three ids; or labels, names of --node-name-dict and predicates of --edge-map, whatever their case",
    )  # fmt: skip
    wanted.add_argument(
        "--test-triples",
        type=Path,
        metavar="FILE",
        help="one test triple a line, or a table of rank_pytorch.py or predict_pytorch.py; needs --output-dir",
    )
    cli.add_settings(parser, settings.pick(TracInOptions, "given_as"))
    files.add_argument("--output", type=Path, help="JSON file for --test-triple")
    files.add_argument("--output-dir", type=Path, help="directory for --test-triples: triple_H_R_T.json each")
    shown = settings.pick(TracInOptions, "nodes", "report", "known", "evidence", "reasons", "trapi")
    cli.add_settings(parser, shown | settings.native_settings())
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, trace, write JSON and print a table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    require_consistent(parser, args)

    with cli.importing():
        from conve_tracin.compute.parallel import processes, run_on_all_gpus_if_asked

    run_on_all_gpus_if_asked(args)
    with cli.importing():
        from conve_tracin.explanation.explain import explain
        from conve_tracin.explanation.scripts import TRACIN_PYTORCH

    with processes():
        explain(TracInOptions(**options_from(args)), TRACIN_PYTORCH)


def require_consistent(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with one line if flags do not go together."""
    several = args.test_triples is not None
    if (args.output is None) != several or (args.output_dir is not None) != several:
        parser.error("--test-triple goes with --output, --test-triples with --output-dir")


def options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Put the flags in the words of `TracInOptions`."""
    engine = NativeEngine(**cli.members_of(NativeEngine, args)).as_options()
    outputs = {"output": args.output or args.output_dir, "output_per_triple": args.output_dir is not None}
    return cli.members_of(TracInOptions, args) | engine | outputs


if __name__ == "__main__":
    cli.run(main)
