#!/usr/bin/env python3
"""Trace predictions of any checkpoint, native or PyKEEN's, to the training triples behind them (TracIn)."""

import argparse
from pathlib import Path

from conve_tracin import cli, settings
from conve_tracin.settings import TracInOptions

__getattr__ = cli.lazy_exports({"run_tracin_analysis": "conve_tracin.analysis"})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse prints one line and exits with code 2 where it is wrong."""
    return build_parser().parse_args(argv)


def build_parser() -> argparse.ArgumentParser:
    """Declare the command line."""
    parser = cli.make_parser(__doc__)
    files = parser.group("files")
    files.add_argument(
        "--model-path", type=Path, nargs="+", required=True, metavar="CHECKPOINT",
        help="native, converted or PyKEEN's; a directory of a PyKEEN pipeline, or of checkpoint_epoch_N.pt; "
        "the influences of several checkpoints add up (TracInCP)",
    )  # fmt: skip
    files.add_argument("--train", type=Path, required=True, help="training triples: head<TAB>relation<TAB>tail")
    declared = settings.with_flags(TracInOptions)
    tested = files.add_mutually_exclusive_group()
    for name in ("test", "test_triples"):
        cli.add_setting(tested, declared[name])
    cli.add_mapping_arguments(files, required=False)
    cli.add_name_arguments(files)
    for name in ("trust_pickle", "embedding_height", "embedding_width"):
        cli.add_setting(files, declared[name])
    files.add_argument(
        "--output", "-o", type=Path, required=True, help="JSON file; a directory with --output-per-triple"
    )
    cli.add_setting(files, declared["output_per_triple"])
    files.add_argument(
        "--csv-output", type=Path, nargs="?", const=True, metavar="FILE",
        help="write a table, too; without FILE beside --output",
    )  # fmt: skip
    for name in ("report", "known"):
        cli.add_setting(files, declared[name])
    groups = ("what to analyse", *settings.SHARED_GROUPS, "engine")
    cli.add_settings(parser, settings.with_flags(TracInOptions, settings.AcceptedOptions, groups=groups))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, analyse, write."""
    args = parse_args(argv)
    options = TracInOptions(**cli.members_of(TracInOptions, args))
    cli.start_on_all_gpus(args)
    from conve_tracin.analysis import analyse
    from conve_tracin.parallel import processes

    with processes():
        analyse(options, keep_content=False)


if __name__ == "__main__":
    cli.run(main)
